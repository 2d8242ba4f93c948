"""The native CPU backend: a library that is compiled once, threads, and layouts that are read in place."""

import functools
import warnings
from importlib import import_module

import pytest
import torch

from mmrednet.ops import backends, fused_involution2d, involution2d
from mmrednet.ops.backends import cpu
from mmrednet.ops.backends.cpu import build

try:
    cpu.load()
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)


def test_fallback_warns_once_without_compiler(tmp_path, monkeypatch, in_python):
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('MMREDNET_CACHE_DIR', str(tmp_path))  # a library that is kept there needs no compiler
    monkeypatch.setattr(cpu, 'load', cpu.load.__wrapped__)
    monkeypatch.setattr(cpu, '_library', cpu._library.__wrapped__)
    monkeypatch.setattr(backends, '_load', functools.cache(backends._load.__wrapped__))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(2):
            involution2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3, 4, 4))
    assert len(caught) == 1 and 'install one' in str(caught[0].message)


@pytest.mark.parametrize('flag', (0, 1))
def test_the_source_refuses_fields_that_are_not_its_own(flag, tmp_path):
    flags = list(cpu.FLAGS)
    flags[flag] = flags[flag].replace('weight', 'bias') if flag == 0 else '-DARGUMENTS_SIZE=8'
    with pytest.raises(RuntimeError, match='in Python'):
        build.load_library(cpu.SOURCE, ('-fsyntax-only', *flags), folder=tmp_path)


@pytest.mark.parametrize('stride', [1, 2])
def test_bits_do_not_depend_on_threads(stride):
    size = 61 // stride + (stride == 2)
    input = torch.randn(2, 32, 61, 61, requires_grad=True)
    kernel = torch.randn(2, 2, 7, 7, size, size, requires_grad=True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = involution2d(input, kernel, stride, backend='cpu')
            results.append((out, *torch.autograd.grad(out.square().sum(), (input, kernel))))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_channels_last_without_copies():
    """The whole step allocates its results and nothing else that is as large as a feature map."""
    input = torch.randn(2, 64, 40, 40).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(2, 4 * 49, 40, 40).contiguous(memory_format=torch.channels_last).unflatten(1, (4, 7, 7))
    out, grads = torch.empty_like(input), (torch.empty_like(input), torch.empty_like(kernel))
    geometry = (1, 1), (3, 3), (1, 1)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        cpu.involution2d(out, input, kernel, *geometry)
        cpu.grad_input(grads[0], out, kernel, *geometry)
        cpu.grad_kernel(grads[1], out, input, *geometry)
    assert not [event for event in profile.events() if event.cpu_memory_usage > 0]
    result = involution2d(input, kernel, backend='cpu')
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, out)


def test_without_torchs_headers_the_python_kernels_are_called(monkeypatch):
    real = cpu.load_library

    def load_library(source, flags):
        if source == cpu.OPERATORS:
            raise RuntimeError("the C++ compiler 'c++' failed on operators.cpp: torch/library.h")
        return real(source, flags)

    monkeypatch.setattr(cpu, 'load_library', load_library)
    monkeypatch.setattr(cpu, '_library', functools.cache(cpu._library.__wrapped__))
    with pytest.warns(UserWarning, match='take longer.*torch/library.h'):
        functions = cpu.load.__wrapped__()
    cpu.register_kernels()
    monkeypatch.setattr(cpu, 'load', lambda: functions)
    torch.testing.assert_close(involution2d(X, H, backend='cpu'), involution2d(X, H, backend='reference'))


@pytest.mark.parametrize('backend', (None, 'cpu'))
@pytest.mark.parametrize(('stride', 'dilation'), ((1, 100_000), (100_000, 1), (1, 2**61), (2**40, 1)))
def test_windows_and_strides_far_larger_than_the_image(stride, dilation, backend):
    """Native code would pack mostly zeros, and more than the memory holds."""
    size = 4 if stride == 1 else 1
    x, h = (torch.rand(s, requires_grad=True) for s in ((1, 4, 4, 4), (1, 2, 3, 3, size, size)))
    f, w = torch.rand(1, 3, size, size), torch.rand(18, 3, 1, 1)
    # With dilation only the middle tap is inside the image. With stride there is one output, with 2x2 taps inside.
    inside = h[:, :, 1, 1] if stride == 1 else None
    y = involution2d(x, h, stride, dilation=dilation, backend=backend)
    if inside is not None:
        torch.testing.assert_close(y, x * inside.repeat_interleave(2, 1))
    else:
        torch.testing.assert_close(y, involution2d(x[..., :2, :2], h[:, :, 1:, 1:], 1, 0, backend='reference'))
    grads = torch.autograd.grad(y.sum(), (x, h))
    assert (grads[0] != 0).sum() == (64 if stride == 1 else 16) and (grads[1] != 0).sum() == (32 if stride == 1 else 8)
    made = torch.conv2d(f, w).unflatten(1, (2, 3, 3))
    fused = fused_involution2d(x, f, w, None, 3, stride, dilation=dilation, backend=backend)
    torch.testing.assert_close(fused, involution2d(x, made, stride, dilation=dilation, backend='torch'))


X, H, DY = torch.rand(2, 8, 6, 5), torch.rand(2, 2, 3, 3, 6, 5), torch.rand(2, 8, 6, 5)
F, W, B = torch.rand(2, 4, 6, 5), torch.rand(18, 4, 1, 1), torch.rand(18)  # H may be made from these
GEOMETRY = [1, 1], [1, 1], [1, 1]


def test_the_dispatcher_calls_native_code_without_python(monkeypatch):
    backends.find(None, torch.device('cpu'))  # registers the native code
    for module in ('involution', 'fused'):
        monkeypatch.setattr(import_module(f'mmrednet.ops.{module}'), 'find', None)
    tensors = [t.clone().requires_grad_() for t in (X, H, F, W, B)]
    for outputs in (involution2d(*tensors[:2]), fused_involution2d(tensors[0], *tensors[2:], 3)):
        outputs.sum().backward()
    with pytest.raises(TypeError, match='not callable'):
        involution2d(X, H, backend='cpu')


@pytest.mark.parametrize(
    ('operator', 'arguments'),
    [
        ('involution2d', (X[0], H, *GEOMETRY)),
        ('involution2d', (X, H[0], *GEOMETRY)),
        ('involution2d', (X, H.double(), *GEOMETRY)),
        ('involution2d', (X.int(), H.int(), *GEOMETRY)),
        ('involution2d', (X, H.to('meta'), *GEOMETRY)),
        ('involution2d', (X, H[:1], *GEOMETRY)),
        ('involution2d', (X[:, :7], H, *GEOMETRY)),
        ('involution2d', (X, H[..., :4], *GEOMETRY)),
        ('involution2d', (X, H[..., :5, :], *GEOMETRY)),
        ('involution2d', (X, H, [0, 1], [1, 1], [1, 1])),
        ('involution2d', (X, H, [1, 1], [1, -1], [1, 1])),
        ('involution2d', (X, H, [1, 1], [1, 1], [1, 0])),
        ('involution2d', (X, H[..., :2, :1], [1, 1], [-1, -1], [1, 1])),
        ('involution2d', (X[..., :1, :1], H[:, :, :2, :2, :1, :1], [2, 2], [0, 0], [1, 1])),  # no window fits
        ('involution2d_grad_input', (DY, H, [6, 6], *GEOMETRY)),
        ('involution2d_grad_input', (DY[..., :4], H, [6, 5], *GEOMETRY)),
        ('involution2d_grad_input', (DY[:, :7], H, [6, 5], *GEOMETRY)),
        ('involution2d_grad_kernel', (DY, X, 3, [3, 3], *GEOMETRY)),
        ('involution2d_grad_kernel', (DY, X, 0, [3, 3], *GEOMETRY)),
        ('involution2d_grad_kernel', (DY, X, 2, [3, 5], *GEOMETRY)),
        ('involution2d_grad_kernel', (DY[:, :4], X, 2, [3, 3], *GEOMETRY)),
        ('fused_involution2d', (X, F[:, :3], W, B, [3, 3], *GEOMETRY)),
        ('fused_involution2d', (X, F[..., :4], W, B, [3, 3], *GEOMETRY)),
        ('fused_involution2d', (X, F[:1], W, B, [3, 3], *GEOMETRY)),
        ('fused_involution2d', (X, F, W[:17], B[:17], [3, 3], *GEOMETRY)),
        ('fused_involution2d', (X, F, W.expand(18, 4, 3, 3), B, [3, 3], *GEOMETRY)),
        ('fused_involution2d', (X, F, W, B[:17], [3, 3], *GEOMETRY)),
        ('fused_involution2d', (X, F, W, B.double(), [3, 3], *GEOMETRY)),
    ],
)
def test_native_code_leaves_what_does_not_fit_to_python(operator, arguments):
    """Python raises the error. Native code would read outside the tensors."""
    for i, argument in enumerate(arguments):
        if isinstance(argument, list):
            with pytest.raises((IndexError, TypeError, ValueError)):
                getattr(torch.ops.mmrednet, operator)(*arguments[:i], argument[:1], *arguments[i + 1 :])
    with pytest.raises((TypeError, ValueError), match='must|smaller|at least'):
        getattr(torch.ops.mmrednet, operator)(*arguments)
