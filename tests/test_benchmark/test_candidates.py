import ctypes
import subprocess
from functools import partial

import pytest
import torch

from mmrednet.benchmark import naive_cuda
from mmrednet.benchmark.candidates import CANDIDATES, Problem, operator_step
from mmrednet.benchmark.cases import Case
from mmrednet.ops.backends import TABLE, reference

SMALL = Case(32, (9, 12), stride=(2, 2), groups=2)


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
    monkeypatch.setattr(naive_cuda, 'launch', run)
    torch.manual_seed(0)
    operator_step('naive', Problem(SMALL, batch=2, phase=phase))()
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


def test_candidates_compute_the_same_shapes():
    shapes = []
    for candidate in ('depthwise', 'reference'):
        for phase in ('backward', 'training'):
            assert len(operator_step(candidate, Problem(SMALL, batch=2, phase=phase))()) == 2
        out = operator_step(candidate, Problem(SMALL, batch=2))()
        shapes.append(out.shape)
        assert not out.requires_grad
    assert shapes == [(2, 32, 5, 6)] * 2


def test_unfused_and_fused_compute_the_same():
    outs = []
    for candidate in ('unfused', 'fused'):
        torch.manual_seed(0)
        outs.append(operator_step(candidate, Problem(SMALL, batch=2))())
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-4)


def test_both_compiled_forms_compute_the_same(monkeypatch):
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='aot_eager'))  # Inductor takes minutes
    results = []
    for candidate in ('reference', 'compiled unfold', 'compiled taps'):
        torch.manual_seed(0)
        results.append(operator_step(candidate, Problem(SMALL, batch=2, phase='backward'))())
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-4)


def test_dilation_reaches_every_candidate():
    case = Case(32, (9, 12), (3, 3), (2, 1), groups=2, dilation=(2, 3))
    assert str(case) == '32x9x12, K = 3, stride 2x1, dilation 2x3' and case.padding == (2, 3)
    shapes = {
        name: operator_step(name, Problem(case, batch=2))().shape
        for name in ('reference', *TABLE, *CANDIDATES)
        if name not in ('floor', 'naive', 'cuda', 'compiled unfold', 'compiled taps')
    }
    assert set(shapes.values()) == {(2, 32, *case.output_size)} and case.output_size == (5, 12)


def test_floor_moves_each_tensor_once():
    case = Case(16, (8, 8))
    image, kernel = 16 * 64, 49 * 64
    forward, backward = (
        operator_step('floor', Problem(case, phase=phase))().numel() for phase in ('forward', 'backward')
    )
    assert 2 * forward == image + kernel + image
    assert 2 * backward == image + kernel + image + image + kernel


def test_unknown_candidate():
    with pytest.raises(ValueError, match="candidate must be one of .*'floor'.* but is 'tpu'"):
        operator_step('tpu', Problem(SMALL))
