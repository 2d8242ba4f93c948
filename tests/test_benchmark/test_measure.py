import json
import subprocess
import sys
from functools import partial

import pytest
import torch
from helpers import ROOT, cells, hide, run_python

from mmrednet.benchmark import measure as benchmark
from mmrednet.benchmark import timing
from mmrednet.benchmark.candidates import PHASES, Case, network_step, rednet_cases, working_backends
from mmrednet.benchmark.measure import benchmark_network, benchmark_operator, benchmark_runtimes
from mmrednet.benchmark.report import format_results

SMALL = Case(32, (9, 12), stride=(2, 2), groups=2)


@pytest.mark.parametrize('channels_last', (False, True))
def test_every_candidate_of_the_operator_runs(channels_last):
    candidates = ['floor', 'depthwise', *working_backends('cpu')]
    assert {'reference', 'torch'} <= set(candidates)
    results = list(benchmark_operator([SMALL], (1, 2), channels_last=channels_last, budget=0))
    forward = [*candidates, 'apart', 'fused'] * 2
    assert [r.candidate for r in results] == forward + candidates * 2
    assert [r.labels['pass'] for r in results] == ['forward'] * len(forward) + ['backward'] * 2 * len(candidates)
    # Input 32x9x12, kernels 2x7x7 and output 32 at 5x6 pixels, of 4 bytes; backward the first two twice.
    read, written = 32 * 9 * 12 + 2 * 49 * 30, 32 * 30
    assert {(r.labels['batch'], r.labels['pass']): r.bytes for r in results} == {
        (batch, phase): 4 * batch * (passes * read + written)
        for batch in (1, 2)
        for phase, passes in (('forward', 1), ('backward', 2))
    }
    assert all(r.unit == 'ms' and len(r.samples) == 7 and min(r.samples) > 0 for r in results)


def test_compiled_is_the_faster_form(monkeypatch):
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='aot_eager'))  # Inductor takes minutes
    seen = {}
    monkeypatch.setattr(
        benchmark, 'time_in_turns', lambda steps, *_: seen.update(steps) or dict.fromkeys(steps, [1e-3])
    )
    results = list(benchmark_operator([SMALL], compiled=True))
    assert [r.candidate for r in results if r.candidate.startswith('compiled')] == ['compiled'] * 2
    times = {'compiled unfold': [3e-3, 1e-3, 3e-3], 'compiled taps': [2e-3]}
    monkeypatch.setattr(benchmark, 'time_in_turns', lambda steps, *_: {name: times.get(name, [1.0]) for name in steps})
    for result in benchmark_operator([SMALL], compiled=True):
        assert result.candidate != 'compiled' or result.samples == (2.0,) and result.bytes
    assert [gradient.shape for gradient in seen['compiled taps']()] == [(1, 32, 9, 12), (1, 2, 7, 7, 5, 6)]


def test_the_operator_is_measured_with_torch_alone():
    absent = hide('mmcv', 'mmengine', 'mmdet', 'mmseg', 'mmpretrain', 'cupy', 'numpy', 'matplotlib')
    run_python(
        absent + 'from mmrednet.benchmark.measure import benchmark_operator\n'
        'from mmrednet.benchmark.candidates import Case\n'
        'from mmrednet.benchmark.report import describe_machine, format_results\n'
        'results = list(benchmark_operator([Case(8, (5, 5))], budget=0))\n'
        "assert 'floor' in format_results(results, 'markdown', describe_machine())\n"
    )


def test_networks(monkeypatch):
    monkeypatch.setattr(benchmark, 'network_step', partial(network_step, size=(64, 64)))
    models = ('ResNet-26', 'RedNet-26', 'RedNet-26/torch')
    results = list(benchmark_network(models, budget=0))
    assert [(r.labels['pass'], r.candidate) for r in results] == [(p, m) for p in PHASES for m in models]
    assert all(len(r.samples) == 7 for r in results)


def test_models_and_runtimes_take_turns(monkeypatch):
    calls = []

    def step(*setting):
        return lambda: calls.append(setting)

    monkeypatch.setattr(benchmark, 'runtime_step', step)
    monkeypatch.setattr(timing, 'BLOCK', 1e-12)  # a sample is one call
    results = list(benchmark_runtimes(batches=(1, 8), runtimes=('PyTorch', 'torch.compile'), budget=0))
    settings = [(m, r, b) for b in (1, 8) for r in ('PyTorch', 'torch.compile') for m in ('ResNet-50', 'RedNet-50')]
    assert [(r.candidate, r.labels['runtime'], r.labels['batch']) for r in results] == settings
    assert all(set(calls[i : i + 4]) == set(settings[:4]) for i in range(8, len(calls) // 2, 4))
    text = format_results(results, 'markdown')
    assert [row[2] for row in cells(text)[2:]] == ['PyTorch', 'torch.compile'] * 2
    assert cells(text)[0][-1] == 'RedNet-50 / ResNet-50'


def test_a_runtime_that_is_missing_is_named_before_anything_is_written(monkeypatch):
    monkeypatch.setattr('mmrednet.export.formats.find_spec', lambda name: None if name == 'openvino' else name)
    monkeypatch.setattr(benchmark, 'runtime_step', None)
    with pytest.raises(ImportError, match='pip install openvino'):
        next(benchmark_runtimes())


def test_command_line():
    command = [sys.executable, 'tools/benchmark.py', 'operator', '--device', 'cpu', '--quick', '--format', 'json']
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    assert report['command'] == 'python tools/benchmark.py operator --device cpu --quick --format json'
    shapes = [str(case) for case in rednet_cases()[:2]]
    assert list(dict.fromkeys(record['shape'] for record in report['results'])) == shapes
