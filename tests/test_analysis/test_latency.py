import csv
import ctypes
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmrednet.analysis import latency, naive_cuda
from mmrednet.analysis.latency import Case, Result
from mmrednet.analysis.report import FORMATS, describe_machine, format_results, plot_results
from mmrednet.models.rednet import RedNet
from mmrednet.ops.backends import reference

ROOT = Path(__file__).parents[2]
SMALL = Case(32, (9, 12), stride=(2, 2), groups=2)
RESULTS = [
    Result({'shape': shape, 'batch': 8, 'pass': phase}, candidate, 'ms', samples)
    for phase in ('forward', 'backward')
    for shape in ('64x56x56, K = 7', '128x56x56, K = 7, stride 2')
    for candidate, samples in {'floor': (0.5, 0.25, 0.75), 'cpu': (1.0, 0.75, 1.5)}.items()
]


@pytest.mark.parametrize(
    'samples', [(4.0,), (3.0, 1.0, 2.0), (1.0, 2.0, 3.0, 4.0), tuple(np.geomspace(1, 2, 38)[::-1])]
)
def test_median_and_interquartile_range(samples):
    result = Result({}, 'cpu', 'ms', samples)
    low, middle, high = np.percentile(samples, (25, 50, 75))
    assert result.median == pytest.approx(middle) and result.iqr == pytest.approx(high - low)


def fake_clock(monkeypatch, seconds):
    calls = []

    def measure(step, count, device):
        calls.append((step, count))
        return seconds * count

    monkeypatch.setattr(latency, '_seconds', measure)
    return calls


def test_each_candidate_has_one_turn_in_every_round(monkeypatch):
    log = fake_clock(monkeypatch, 1e-3)
    samples = latency.time_in_turns(dict(a='a', b='b', c='c'), budget=0)
    assert log[:6] == [(name, 1) for name in 'aabbcc']
    turns = [step for step, _ in log[6:]]
    rounds = [turns[i : i + 3] for i in range(0, len(turns), 3)]
    assert len(rounds) == 7 and all(sorted(turn) == ['a', 'b', 'c'] for turn in rounds)
    assert len(set(map(tuple, rounds))) > 1
    # A sample lasts for 2 ms, and counts one call.
    assert {count for _, count in log[6:]} == {2}
    assert samples == {name: pytest.approx([1e-3] * 7) for name in 'abc'}


@pytest.mark.parametrize(('budget', 'rounds', 'expected'), [(10, (2, 100), 4), (0, (2, 100), 2), (1e9, (2, 5), 5)])
def test_budget(monkeypatch, budget, rounds, expected):
    fake_clock(monkeypatch, 1.0)
    samples = latency.time_in_turns(dict(a='a', b='b', c='c'), budget=budget, rounds=rounds)
    assert {name: len(taken) for name, taken in samples.items()} == dict(a=expected, b=expected, c=expected)


def test_cases_are_those_of_the_model():
    cases = latency.rednet_cases()
    assert len(cases) == 8
    assert cases[:2] == [Case(32, (112, 112), (3, 3), groups=2), Case(64, (56, 56), groups=4)]
    assert Case(512, (14, 14), stride=(2, 2), groups=32) in cases and Case(512, (7, 7), groups=32) in cases
    assert latency.fpn_case((800, 1280)) == Case(256, (200, 320), groups=16)


@pytest.fixture(scope='module')
def naive_on_cpu(tmp_path_factory):
    """Runs the straightforward CUDA kernels as C++, in one thread that takes every element."""
    path = tmp_path_factory.mktemp('naive') / 'naive.cpp'
    one_thread = 'struct { long long x; } const blockIdx{0}, threadIdx{0}, blockDim{1}, gridDim{1};'
    path.write_text(f'#define __global__\n{one_thread}\n{naive_cuda.SOURCE.read_text()}')
    command = ['c++', '-shared', '-fPIC', *naive_cuda.options(torch.float32), path, '-o', path.with_suffix('.so')]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(path.with_suffix('.so')))


@pytest.mark.parametrize('phase', ('forward', 'backward', 'training'))
def test_naive_candidate_does_the_same_work(monkeypatch, naive_on_cpu, phase):
    def run(name, written, x, k, y, *geometry):
        sizes = map(ctypes.c_int, naive_cuda.sizes(x, k, *geometry))
        pointers = (ctypes.c_void_p(t.data_ptr()) for t in (x, k, y))
        naive_on_cpu[name](*pointers, ctypes.c_longlong(written.numel()), *sizes)
        ran[name] = written

    ran = {}
    monkeypatch.setattr(naive_cuda, '_run', run)
    torch.manual_seed(0)
    latency.operator_step('naive', SMALL, 2, phase=phase)()
    torch.manual_seed(0)
    kernel, x, y = (torch.randn(2, n, *size) for n, size in ((98, (5, 6)), (32, (9, 12)), (32, (5, 6))))
    x.requires_grad_(), kernel.requires_grad_()
    output = reference.involution2d(x, kernel.unflatten(1, (2, 7, 7)), (2, 2), (3, 3), (1, 1))
    expected = {'forward': output.detach()} if phase != 'backward' else {}
    if phase != 'forward':
        grad = ran.get('forward', y)
        gradients = torch.autograd.grad(output, (x, kernel), grad)
        expected |= {'grad_input': gradients[0], 'grad_kernel': gradients[1].unflatten(1, (2, 7, 7))}
    assert ran.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ran[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('channels_last', (False, True))
def test_every_candidate_of_the_operator_runs(channels_last):
    candidates = ['floor', 'depthwise', *latency.working_backends('cpu')]
    assert {'reference', 'torch'} <= set(candidates)
    results = list(latency.benchmark_operator([SMALL], (1, 2), channels_last=channels_last, budget=0))
    forward = [*candidates, 'apart', 'fused'] * 2
    assert [r.candidate for r in results] == forward + candidates * 2
    assert [r.labels['pass'] for r in results] == ['forward'] * len(forward) + ['backward'] * 2 * len(candidates)
    assert all(r.unit == 'ms' and len(r.samples) == 7 and min(r.samples) > 0 for r in results)


def test_candidates_compute_the_same_shapes():
    shapes = []
    for candidate in ('depthwise', 'reference'):
        for phase in ('backward', 'training'):
            assert len(latency.operator_step(candidate, SMALL, 2, phase=phase)()) == 2
        out = latency.operator_step(candidate, SMALL, 2)()
        shapes.append(out.shape)
        assert not out.requires_grad
    assert shapes == [(2, 32, 5, 6)] * 2


def test_apart_and_fused_compute_the_same():
    outs = []
    for candidate in ('apart', 'fused'):
        torch.manual_seed(0)
        outs.append(latency.operator_step(candidate, SMALL, 2)())
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-4)


def test_floor_moves_each_tensor_once():
    case = Case(16, (8, 8))
    image, kernel = 16 * 64, 49 * 64
    forward, backward = (
        latency.operator_step('floor', case, phase=phase)().numel() for phase in ('forward', 'backward')
    )
    assert 2 * forward == image + kernel + image
    assert 2 * backward == image + kernel + image + image + kernel


def test_networks(monkeypatch):
    monkeypatch.setattr(latency, 'network_step', partial(latency.network_step, size=(64, 64)))
    models = ('ResNet-26', 'RedNet-26', 'RedNet-26/torch')
    results = list(latency.benchmark_network(models, budget=0))
    assert [(r.labels['pass'], r.candidate) for r in results] == [(p, m) for p in latency.PHASES for m in models]
    assert all(len(r.samples) == 7 for r in results)
    latency.network_step('RedNet-26', 2, torch.bfloat16, channels_last=True, phase='training')()
    with pytest.raises(ValueError, match="model must be one of .* but is 'RedNet-51'"):
        latency.network_step('RedNet-51')
    with pytest.raises(ValueError, match="phase must be one of .* but is 'test'"):
        latency.network_step('RedNet-26', phase='test')


def test_norms_are_fused_but_for_those_after_an_involution():
    fuse_conv_bn = pytest.importorskip('mmcv.cnn').fuse_conv_bn
    model, images = RedNet(26), torch.randn(2, 3, 64, 64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Takes the statistics of the next batch.
            module.momentum = None
            nn.init.uniform_(module.bias)
    with torch.no_grad():
        model.train()(images)
    model.eval()
    with torch.no_grad():
        (expected,), (fused,) = model(images), fuse_conv_bn(model)(images)
    torch.testing.assert_close(fused, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    left = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == ['stem.2', *(f'layer{i + 1}.{j}.bn2' for i, n in enumerate((1, 2, 4, 1)) for j in range(n))]


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='needs Linux')
def test_peak_memory_shows_the_windows_of_unfold():
    case = Case(64, (56, 56), groups=4)
    windows = 49 * 64 * 56 * 56 * 4
    reference, lean = (
        latency.peak_memory(*(partial(latency.operator_step, backend, c) for c in (case, SMALL)))
        for backend in ('reference', 'torch')
    )
    assert windows < reference < 4 * windows
    assert lean < windows


@pytest.mark.parametrize('style', FORMATS)
def test_formats(style):
    about = describe_machine()
    text = format_results(RESULTS, style, about)
    assert torch.__version__ in about['versions'] and all(value in text for value in about.values())
    if style == 'json':
        assert [record['median'] for record in json.loads(text)['results']] == [0.5, 1.0] * 4
    elif style == 'csv':
        records = list(csv.DictReader(line for line in text.splitlines() if not line.startswith('#')))
        assert [(r['candidate'], float(r['median']), float(r['iqr'])) for r in records] == [
            ('floor', 0.5, 0.25),
            ('cpu', 1.0, 0.375),
        ] * 4
    else:
        rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('|')]
        assert rows[0] == ['shape', 'batch', 'pass', 'floor', 'cpu', 'cpu / floor']
        assert [row[2:] for row in rows[2:]] == [
            [phase, '0.500 (0.25)', '1.00 (0.38)', '2.00'] for phase in ('forward',) * 2 + ('backward',) * 2
        ]


def test_unknown_format():
    with pytest.raises(ValueError, match="format must be one of .* but is 'yaml'"):
        format_results(RESULTS, 'yaml')


def test_plot(tmp_path):
    pytest.importorskip('matplotlib')
    assert plot_results(RESULTS, tmp_path / 'new' / 'operator.png').read_bytes().startswith(b'\x89PNG')


def test_command_line():
    command = [sys.executable, 'tools/benchmark.py', 'operator', '--device', 'cpu', '--quick', '--format', 'json']
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    assert report['command'] == 'python tools/benchmark.py operator --device cpu --quick --format json'
    shapes = [str(case) for case in latency.rednet_cases()[:2]]
    assert list(dict.fromkeys(record['shape'] for record in report['results'])) == shapes
