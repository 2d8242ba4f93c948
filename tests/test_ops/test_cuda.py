"""The CUDA backend: what can be known without a GPU, and, marked so, what takes one."""

import itertools
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch

from mmrednet.analysis import naive_cuda
from mmrednet.ops import involution2d
from mmrednet.ops.backends import cuda, reference

HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32, torch.float64)
HOT = cuda.Specialisation(torch.float32, (7, 7), (1, 1), (1, 1), channels_last=False, pixel_major=False, wide=False)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


def specialisations():
    """Those of RedNet, of its necks and heads, and of the paper's ablations."""
    for dtype, size, stride, last in itertools.product(DTYPES, (3, 7), (1, 2), (False, True)):
        yield cuda.Specialisation(dtype, (size, size), (stride, stride), (1, 1), last, last, wide=False)
    for size in (5, 9):
        yield cuda.Specialisation(
            torch.float32, (size, size), (1, 1), (1, 1), channels_last=False, pixel_major=False, wide=False
        )
    yield cuda.Specialisation(torch.float32, (7, 7), (1, 1), (1, 1), channels_last=False, pixel_major=False, wide=True)
    yield cuda.Specialisation(torch.float32, (7, 7), (1, 1), (2, 2), channels_last=False, pixel_major=False, wide=False)


def compile_for(specialisation, architecture):
    """Compiles with NVRTC as CuPy does on that architecture and returns the PTX."""
    compiler = pytest.importorskip('cupy.cuda.compiler', reason='needs CuPy')
    program = compiler._NVRTCProgram(cuda.SOURCE.read_text(), 'involution2d.cu')
    ptx, _ = program.compile([*specialisation.options, f'--gpu-architecture=compute_{architecture}'])
    return ptx.decode() if isinstance(ptx, bytes) else ptx


def test_compiles_for_every_architecture():
    cupy = pytest.importorskip('cupy', reason='needs CuPy')
    architectures = cupy.cuda.nvrtc.getSupportedArchs()
    assert {80, 90} <= set(architectures)
    for architecture in architectures:
        for dtype in (torch.float32, torch.bfloat16):
            specialisation = cuda.Specialisation(dtype, (7, 7), (1, 1), (1, 1), False, False, False)
            ptx = compile_for(specialisation, architecture)
            assert all(f'.entry {name}(' in ptx for name in ('forward', 'grad_input', 'grad_kernel'))
            assert '.entry fused(' in compile_for(replace(specialisation, fused=True), architecture)
        for dtype in naive_cuda.DTYPES:
            program = cupy.cuda.compiler._NVRTCProgram(naive_cuda.SOURCE, 'naive.cu')
            program.compile([*naive_cuda.options(dtype), f'--gpu-architecture=compute_{architecture}'])


@pytest.mark.parametrize('architecture', [80, 90])
def test_compiles_every_specialisation_and_none_spills(architecture, tmp_path):
    sizes = {80: (7,), 90: (3, 7)}[architecture]
    hot = [s for s in specialisations() if s.kernel_size[0] in sizes and s.dtype != torch.float64 and not s.wide]
    fused = [replace(s, pixel_major=False, fused=True) for s in hot if s.kernel_size == (7, 7)]
    for specialisation in (*specialisations(), *fused):
        ptx = compile_for(specialisation, architecture)
        if shutil.which('ptxas') and specialisation in (*hot, *fused):
            (tmp_path / 'ptx').write_text(ptx)
            command = ['ptxas', '-v', f'-arch=sm_{architecture}', tmp_path / 'ptx', '-o', tmp_path / 'cubin']
            report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
            spills = re.findall(r'(\d+) bytes spill (?:stores|loads)', report)
            assert len(spills) == 2 * ptx.count('.entry'), report
            assert set(spills) == {'0'}, f'{specialisation} on sm_{architecture}:\n{report}'


def plan(function, x, k, features=None):
    layouts = (cuda.Layout.of(t) for t in (x, k, x))
    features = None if features is None else cuda.Layout.of(features)
    return cuda.plan(function, *layouts, (1, 1), (3, 3), (1, 1), features=features)


def test_sizes_share_a_module():
    planned = set()
    for size in range(50):
        n, h, w = 1 + size % 3, 20 + 7 * size, 333 - 3 * size
        x, k = torch.empty(n, 32, h, w, device='meta'), torch.empty(n, 2, 7, 7, h, w, device='meta')
        for function in ('forward', 'grad_input', 'grad_kernel'):
            planned.add(plan(function, x, k).specialisation)
        features = torch.empty(n, 1 + size, h, w, device='meta')
        planned.add(plan('fused', x, k, features).specialisation)
    assert planned == {HOT, replace(HOT, fused=True)}


def test_fuses_where_it_is_estimated_to_pay_and_fits(monkeypatch):
    launched = []
    monkeypatch.setattr(cuda, '_device', lambda index: cuda.Device())
    monkeypatch.setattr(cuda, '_launch', lambda launch, index, tensors: launched.append(launch.function))
    for channels, reduced, size, dtype, expected in (
        (64, 16, 7, torch.float32, 'fused'),
        (128, 32, 7, torch.float32, 'fused'),
        (256, 64, 7, torch.float32, 'forward'),
        (512, 128, 7, torch.float32, 'forward'),
        (64, 16, 7, torch.bfloat16, 'fused'),
        (128, 32, 7, torch.bfloat16, 'forward'),
        (64, 16, 45, torch.float32, 'forward'),  # weights beyond shared memory
    ):
        groups = channels // 16
        x, features = (torch.zeros(1, c, 9, 9, dtype=dtype) for c in (channels, reduced))
        weight = torch.zeros(groups * size * size, reduced, 1, 1, dtype=dtype)
        geometry = (1, 1), (size // 2, size // 2), (1, 1)
        cuda.fused_involution2d(torch.empty_like(x), x, features, weight, None, (size, size), *geometry)
        assert launched.pop() == expected, (channels, size, dtype)
    assert not cuda.fusing_pays(32, 2, torch.float32)  # two chunks of channels generate the kernel twice


def test_large_tensors_have_wide_indices():
    for n, wide in ((41, False), (45, True)):
        x, k = torch.empty(n, 16, 1000, 1000, device='meta'), torch.empty(n, 1, 7, 7, 1000, 1000, device='meta')
        assert plan('forward', x, k).specialisation.wide == wide


@needs_gpu
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('dtype', DTYPES)
def test_matches_float64(dtype, channels_last):
    _check(*_problem(dtype, channels_last))


@needs_gpu
def test_works_on_another_stream():
    x, k = _problem(torch.float32)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # The stream is busy for long enough that a kernel on another one would read x before it is written.
        torch.cuda._sleep(10_000_000)
        late = x.detach() * 2
        y = involution2d(late, k.detach(), backend='cuda')
    stream.synchronize()
    expected = reference.involution2d(x.double() * 2, k.double(), (1, 1), (3, 3), (1, 1))
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)


@needs_gpu
def test_a_graph_replays_it():
    x, k = (t.detach() for t in _problem(torch.float32))
    involution2d(x, k, backend='cuda')  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = involution2d(x, k, backend='cuda')
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(y, involution2d(x, k, backend='cuda'))


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_two_devices():
    for device in ('cuda:1', 'cuda:0'):
        _check(*_problem(torch.float32, device=device))


@needs_gpu
def test_same_bits_every_time():
    x, k = _problem(torch.float32)
    runs = []
    for _ in range(3):
        y = involution2d(x, k, backend='cuda')
        runs.append((y, *torch.autograd.grad(y.square().sum(), (x, k))))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def _problem(dtype, channels_last=False, device='cuda'):
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(4, 64, 28, 35, device=device).to(dtype, memory_format=memory_format)
    k = torch.randn(4, 4 * 49, 28, 35, device=device).to(dtype, memory_format=memory_format)
    return x.requires_grad_(), k.unflatten(1, (4, 7, 7)).detach().requires_grad_()


def _check(x, k):
    y = involution2d(x, k, backend='cuda')
    grad = torch.randn_like(y)
    got = y, *torch.autograd.grad(y, (x, k), grad)
    x, k = (t.detach().double().requires_grad_() for t in (x, k))
    y = reference.involution2d(x, k, (1, 1), (3, 3), (1, 1))
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6, torch.float64: 1e-14}[got[0].dtype]
    for a, b in zip(got, (y, *torch.autograd.grad(y, (x, k), grad.double())), strict=True):
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max()
