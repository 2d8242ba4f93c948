"""Involution in one and three dimensions, against loops in float64."""

import itertools

import pytest
import torch

from mmrednet.ops import involution1d, involution3d

CASES = [  # size, kernel size, stride, padding, dilation
    ((4, 5, 3), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    ((6, 5, 4), (3, 3, 1), (2, 1, 2), (2, 1, 0), (2, 1, 1)),
    ((6, 5, 4), (2, 3, 3), (3, 2, 1), (0, 1, 1), (1, 1, 1)),
    ((1, 3, 3), (3, 1, 1), (1, 1, 1), (1, 0, 0), (1, 1, 1)),
    ((1, 2, 2), (1, 1, 1), (3, 1, 1), (2, 0, 0), (1, 1, 1)),  # every window passes by the one slice
]


def by_loops(input, kernel, stride, padding, dilation):
    """One tap after the other, as eq. 4 has them with one axis more."""
    n, channels, *size = input.shape
    groups, *shape = kernel.shape[1:]
    out = torch.zeros(n, channels, *shape[3:], dtype=torch.float64)
    for at in itertools.product(*map(range, shape)):
        tap, to = at[:3], at[3:]
        place = [t * s - p + u * d for t, s, p, u, d in zip(to, stride, padding, tap, dilation, strict=True)]
        if all(0 <= x < length for x, length in zip(place, size, strict=True)):
            weights = kernel[(slice(None), slice(None), *at)].repeat_interleave(channels // groups, 1)
            out[(..., *to)] += weights * input[(..., *place)]
    return out


def make(size, kernel_size, stride, padding, dilation):
    generator = torch.Generator().manual_seed(0)
    out = [
        (length + 2 * p - d * (k - 1) - 1) // s + 1
        for length, k, s, p, d in zip(size, kernel_size, stride, padding, dilation, strict=True)
    ]
    input = torch.randn(2, 4, *size, dtype=torch.float64, generator=generator).requires_grad_()
    kernel = torch.randn(2, 2, *kernel_size, *out, dtype=torch.float64, generator=generator).requires_grad_()
    return input, kernel


@pytest.mark.parametrize('case', CASES, ids=str)
def test_volumes(case):
    input, kernel = make(*case)
    out = involution3d(input, kernel, *case[2:])
    assert torch.allclose(out, by_loops(input.detach(), kernel.detach(), *case[2:]), atol=1e-12)
    if out.requires_grad:
        involve = lambda input, kernel: involution3d(input, kernel, *case[2:])  # noqa: E731
        assert torch.autograd.gradcheck(involve, (input, kernel), fast_mode=True, check_forward_ad=True)


def test_lines():
    input, kernel = make((1, 1, 9), (1, 1, 3), (1, 1, 2), (0, 0, 2), (1, 1, 2))
    out = involution1d(input[:, :, 0, 0], kernel[:, :, 0, 0, :, 0, 0], 2, 2, 2)
    expected = by_loops(input.detach(), kernel.detach(), (1, 1, 2), (0, 0, 2), (1, 1, 2))
    assert torch.allclose(out, expected[:, :, 0, 0], atol=1e-12)


def test_default_padding_keeps_the_size():
    assert involution1d(torch.zeros(1, 2, 9), torch.zeros(1, 1, 5, 9)).shape == (1, 2, 9)
    assert involution3d(torch.zeros(1, 2, 4, 5, 6), torch.zeros(1, 1, 3, 3, 3, 4, 5, 6)).shape == (1, 2, 4, 5, 6)


def test_sums_run_in_float32():
    input, kernel = torch.full((1, 1, 3, 1, 1), 256.0), torch.ones(1, 1, 3, 1, 1, 3, 1, 1)
    input[0, 0, 0] = 1.0
    out = involution3d(input.bfloat16(), kernel.bfloat16())
    assert out[0, 0, 1, 0, 0] == torch.tensor(513.0).bfloat16()


@pytest.mark.parametrize(
    ('input', 'kernel', 'options', 'text'),
    [
        ((1, 2, 3, 3), (1, 1, 3, 3, 3, 3, 3, 3), {}, 'input must have 5 dimensions'),
        ((1, 2, 3, 3, 3), (1, 1, 3, 3, 3, 3), {}, 'kernel must have 8 dimensions'),
        ((1, 2, 3, 3, 3), (1, 1, 3, 3, 3, 2, 3, 3), {}, 'kernels for 3 output slices'),
        ((1, 2, 3, 3, 3), (1, 1, 2, 3, 3, 3, 3, 3), {}, "padding None means 'same'"),
        ((1, 2, 3, 3, 3), (1, 1, 3, 3, 3, 3, 3, 3), dict(stride=(1, 1)), 'stride must be an int or three ints'),
        ((1, 2, 3, 3, 3), (1, 1, 3, 3, 3, 3, 3, 3), dict(dilation=0), 'dilation must be at least 1, but is 0'),
    ],
)
def test_errors_name_the_argument(input, kernel, options, text):
    with pytest.raises(ValueError, match=text):
        involution3d(torch.zeros(input), torch.zeros(kernel), **options)


@pytest.mark.parametrize('backend', ('reference', 'torch', 'cpu', None))
def test_a_window_that_passes_by_all_slices(backend):
    """The output and the gradients are zero, and the arguments are checked."""
    x, kernel = torch.randn(1, 2, 1, 4, 4, requires_grad=True), torch.randn(1, 1, 2, 1, 1, 1, 4, 4, requires_grad=True)
    geometry = dict(padding=(1, 0, 0), dilation=(2, 1, 1), backend=backend)
    out = involution3d(x, kernel, **geometry)
    assert out.shape == x.shape and not out.any()
    grads = torch.autograd.grad(out.sum(), (x, kernel))
    assert all(grad.shape == tensor.shape and not grad.any() for grad, tensor in zip(grads, (x, kernel), strict=True))
    with pytest.raises(TypeError, match='dtype'):
        involution3d(x, kernel.double(), **geometry)
