"""Infinity and NaN: at taps outside the input they contribute nothing, inside they give what IEEE arithmetic gives."""

import pytest
import torch
import torch.nn.functional as F
from helpers import CASES, TOLERANCE, backends, check, make_arguments, make_fused_arguments, run, truth

from mmrednet.ops import fused_involution2d, involution2d

# Small images have only border pixels. A wide one, and one with much padding, take other paths of the native kernels.
CASES = [case for case in CASES if 0 < case[0][0] * case[0][2] < 56] + [
    ((1, 20, 9, 21), 1, (7, 7), 2, None, 1),
    ((1, 16, 12, 16), 2, (3, 3), 1, 4, 2),
]
# Features and weights whose product overflows in the dtype, but not in float64. In float64 the truth masks it, too.
OVERFLOW = {torch.float16: (100, 800), torch.bfloat16: (1e20, 1e20), torch.float32: (1e20, 1e20)}
OVERFLOW[torch.float64] = (1e160, 1e160)


def anything(tensor, chance=1.0):
    """Returns the tensor with some values replaced by infinity of either sign or NaN."""
    generator = torch.Generator().manual_seed(2)
    values = torch.tensor((float('inf'), -float('inf'), float('nan')))
    places = torch.rand(tensor.shape, generator=generator) < chance
    values = values[torch.randint(3, tensor.shape, generator=generator)].to(tensor)
    with torch.no_grad():
        return tensor.clone().copy_(torch.where(places.to(tensor.device), values, tensor)).requires_grad_()


def outside(input, kernel, stride, padding, dilation):
    """Returns a mask (Kh, Kw, Ho, Wo) of the taps outside the input."""
    taps = F.unfold(torch.ones_like(input[:1, :1]).double(), kernel.shape[2:4], dilation, padding, stride)
    return taps.view(kernel.shape[2:]) == 0


@pytest.mark.parametrize('case', CASES, ids=str)
@pytest.mark.parametrize('backend', backends(), ids=str)
def test_taps_outside_contribute_nothing(backend, case):
    name, device = backend
    for dtype in TOLERANCE:
        for channels_last in (False, True):
            (input, kernel), grad_output, geometry = make_arguments(*case, dtype, device, channels_last)
            place = outside(input, kernel, *geometry)
            with torch.no_grad():
                poisoned = kernel.clone().copy_(torch.where(place, anything(kernel), kernel)).requires_grad_()
            actual = run(involution2d, (input, poisoned), grad_output, geometry, backend=name)
            check(involution2d, actual, (input, kernel), grad_output, geometry)
            assert (actual[2].masked_select(place) == 0).all()


@pytest.mark.parametrize('case', CASES, ids=str)
@pytest.mark.parametrize('backend', backends(), ids=str)
def test_taps_inside_are_as_in_ieee_arithmetic(backend, case):
    """In the output and in both gradients, whichever of the three tensors they come from."""
    name, device = backend
    kernel_size = case[2]
    for dtype in TOLERANCE:
        for channels_last in (False, True):
            tensors, grad_output, geometry = make_arguments(*case, dtype, device, channels_last)
            chance = 0.2 / (kernel_size[0] * kernel_size[1])
            for which in range(3):
                poisoned = [anything(t, chance) if i == which else t for i, t in enumerate((*tensors, grad_output))]
                *inputs, grad = poisoned
                actual = run(involution2d, inputs, grad.detach(), geometry, backend=name)
                exact, scale = truth(involution2d, inputs, grad, geometry)
                for a, e, s in zip(actual, exact, scale, strict=True):
                    a, finite = a.detach().cpu().double(), e.isfinite()
                    assert torch.equal(a.isnan(), e.isnan())
                    assert torch.equal(a[e.isinf()], e[e.isinf()])
                    assert ((a - e).abs()[finite] <= (TOLERANCE[dtype] * s + 1e-300)[finite]).all()


@pytest.mark.parametrize('case', CASES, ids=str)
@pytest.mark.parametrize('backend', backends(), ids=str)
def test_generated_kernels_may_overflow_outside(backend, case):
    """If the first tap of a pixel is outside, an infinite value is generated for it."""
    name, device = backend
    for dtype in TOLERANCE:
        for channels_last in (False, True):
            tensors, grad_output, geometry = make_fused_arguments(*case, dtype, device, channels_last)
            input, features, weight, bias = tensors
            kernel_size, *rest = geometry
            kernel = input.new_empty(1, 1, *kernel_size, *features.shape[2:])
            place = outside(input, kernel, *rest)[0, 0]
            with torch.no_grad():
                large, factor = OVERFLOW[dtype]
                features.masked_fill_(place, large)
                weight.unflatten(0, (-1, *kernel_size))[:, 0, 0] = factor
                generated = F.conv2d(features, weight, bias).unflatten(1, (-1, *kernel_size))
            assert generated[:, :, 0, 0].masked_select(place).isinf().all()
            actual = run(fused_involution2d, tensors, grad_output, geometry, backend=name)
            check(fused_involution2d, actual, tensors, grad_output, geometry)
