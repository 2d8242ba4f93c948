import sys

import pytest
from helpers import cells

from mmrednet.benchmark import runtimes, timing
from mmrednet.benchmark.report import format_results
from mmrednet.benchmark.runtimes import RUNTIMES, benchmark_runtimes, runtime_step


@pytest.mark.slow
@pytest.mark.parametrize('runtime', RUNTIMES)
def test_runtimes(runtime):
    package = {'ONNX Runtime': 'onnxruntime', 'OpenVINO': 'openvino'}.get(runtime.partition(',')[0])
    if package:
        pytest.importorskip('onnxscript')
        pytest.importorskip(package)
    try:
        step = runtime_step('RedNet-26', runtime, 2, (64, 64))
    except RuntimeError as error:
        if 'headers' not in str(error):
            raise
        pytest.skip(str(error))
    step()


def test_unknown_runtime():
    with pytest.raises(ValueError, match="runtime must be one of .* but is 'NCNN'"):
        runtime_step('RedNet-26', 'NCNN')


def test_models_and_runtimes_take_turns(monkeypatch):
    calls = []

    def step(*setting):
        return lambda: calls.append(setting)

    monkeypatch.setattr(runtimes, 'runtime_step', step)
    monkeypatch.setattr(timing, 'BLOCK', 1e-12)  # a sample is one call
    results = list(benchmark_runtimes(batches=(1, 8), runtimes=('PyTorch', 'torch.compile'), budget=0))
    settings = [(m, r, b) for b in (1, 8) for r in ('PyTorch', 'torch.compile') for m in ('ResNet-50', 'RedNet-50')]
    assert [(r.candidate, r.labels['runtime'], r.labels['batch']) for r in results] == settings
    assert all(set(calls[i : i + 4]) == set(settings[:4]) for i in range(8, len(calls) // 2, 4))
    text = format_results(results, 'markdown')
    assert [row[2] for row in cells(text)[2:]] == ['PyTorch', 'torch.compile'] * 2
    assert cells(text)[0][-1] == 'RedNet-50 / ResNet-50'


def test_a_runtime_that_is_missing_is_named_before_anything_is_written(monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    monkeypatch.setattr(runtimes, 'runtime_step', None)
    with pytest.raises(ImportError, match='pip install openvino'):
        next(benchmark_runtimes())
