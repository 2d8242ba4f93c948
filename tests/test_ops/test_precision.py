"""float16 and bfloat16 against loops in float64, for magnitudes from 1e-6 to 1e4: one rounding of the exact sum.

The bound of a result is u times its value, for the rounding to 16 bits, and 1e-6 times the sum of the absolute values
of its terms, for the sum in float32. u is 2^-11 in float16 and 2^-8 in bfloat16. Below the normal numbers, half the
smallest number replaces the first part. ``python tests/test_ops/test_precision.py`` prints a table.
"""

import itertools

import numpy as np
import pytest
import torch
from oracle import Geometry, input_gradient, involution, kernel_gradient

from mmrednet.ops import involution2d

MAGNITUDES = (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4)
DTYPES = (torch.float16, torch.bfloat16)
BACKENDS = ('reference', 'torch', 'cpu', None)
GEOMETRY = Geometry((7, 7), (1, 1), (3, 3), (1, 1), 2)
NAMES = ('output', 'gradient of the input', 'gradient of the kernel')


def measure(dtype, backend, magnitudes, channels_last=False, alternate=False):
    """Returns for each result the largest error as a part of its bound, and how many elements overflow.

    With ``alternate``, all terms have the same magnitude and half of them have the other sign: away from the border,
    they cancel.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 32, 9, 20), (2, 2, 7, 7, 9, 20), (2, 32, 9, 20)
    values = [torch.randn(shape, generator=generator) * m for shape, m in zip(shapes, magnitudes, strict=True)]
    if alternate:
        values = [torch.full(shape, m) for shape, m in zip(shapes, magnitudes, strict=True)]
        signs = torch.arange(49).remainder(2).mul(2).sub(1)
        signs[24] = 0
        values[1] *= signs.view(7, 7, 1, 1)
        values[0][:, ::2] *= -1
    x, kernel, grad = (value.to(dtype) for value in values)
    if channels_last:
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    x, kernel = x.requires_grad_(), kernel.requires_grad_()
    out = involution2d(x, kernel, backend=backend)
    found = out, *torch.autograd.grad(out, (x, kernel), grad)
    exact, terms = (
        [
            involution(xs, ks, GEOMETRY),
            input_gradient(gs, ks, xs.shape[2:], GEOMETRY),
            kernel_gradient(gs, xs, GEOMETRY),
        ]
        for xs, ks, gs in ([f(t.detach().double().numpy()) for t in (x, kernel, grad)] for f in (np.copy, np.abs))
    )
    return [compare(*results, dtype) for results in zip(found, exact, terms, strict=True)]


def compare(found, exact, terms, dtype):
    """Returns the largest error as a part of its bound, and the number of elements that overflow.

    An element is infinite if and only if the exact value, within the bound of its sum, rounds to infinity.
    """
    limits = torch.finfo(dtype)
    half = limits.eps / 2
    found, accumulated = found.detach().double().numpy(), 1e-6 * terms
    largest = limits.max * (1 + half / 2)  # from here on, a value rounds to infinity
    infinite = np.isinf(found)
    assert not np.isnan(found).any()
    assert (np.abs(exact) + accumulated >= largest)[infinite].all(), 'a sum overflowed though its value is finite'
    assert (np.abs(exact) - accumulated < largest)[~infinite].all()
    assert (np.sign(found) == np.sign(exact))[infinite].all()
    bound = half * np.maximum(np.abs(exact), limits.smallest_normal) + accumulated
    error = np.abs(found - exact)[~infinite]
    return float((error / bound[~infinite]).max(initial=0)), int(infinite.sum())


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_magnitudes(dtype, backend):
    for magnitudes in ((1e-6, 1.0, 1e4), (1e4, 1e4, 1e-6), (1e-6, 1e-6, 1e-6), (1e4, 1e-6, 1e4)):
        for channels_last in (False, True):
            parts = measure(dtype, backend, magnitudes, channels_last)
            assert max(part for part, _ in parts) <= 1, (magnitudes, parts)


@pytest.mark.slow
@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_all_magnitudes(dtype, backend):
    for magnitudes in itertools.product(MAGNITUDES, repeat=3):
        assert max(part for part, _ in measure(dtype, backend, magnitudes)) <= 1, magnitudes


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_a_sum_does_not_overflow_on_the_way(dtype, backend):
    """Terms of 1e8 exceed float16's range, and half of them have the other sign."""
    for channels_last in (False, True):
        for part, _ in measure(dtype, backend, (1e4, 1e4, 1e4), channels_last, alternate=True):
            assert part <= 1


def main():
    """Prints the largest error of each result as a part of its bound."""
    print('| dtype | backend | ' + ' | '.join(NAMES) + ' | overflows |\n| --- | --- | --- | --- | --- | --- |')
    for dtype, backend in itertools.product(DTYPES, BACKENDS):
        parts = [measure(dtype, backend, m) for m in itertools.product(MAGNITUDES, repeat=3)]
        largest = (f'{max(case[i][0] for case in parts):.2f}' for i in range(3))
        overflows = sum(count for case in parts for _, count in case)
        print(f'| {str(dtype)[6:]} | {backend} | {" | ".join(largest)} | {overflows} |')


if __name__ == '__main__':
    main()
