"""FLOP formulas of the operators and their gradients for ``torch.utils.flop_counter``. A multiply-add is two FLOPs."""

from collections.abc import Sequence
from math import prod

import torch
from torch.utils.flop_counter import register_flop_formula

from . import fused, involution, window_product  # noqa: F401  (define the operators)


def multiply_adds(output_shape: Sequence[int], kernel_size: Sequence[int]) -> int:
    """Returns the multiply-adds of an involution: one for each element of the output (N, C, Ho, Wo) and each tap."""
    return prod(output_shape) * prod(kernel_size)


@register_flop_formula(torch.ops.mmrednet.involution2d)
def _forward(input_shape, kernel_shape, *args, out_shape, **kwargs) -> int:
    return 2 * multiply_adds(out_shape, kernel_shape[2:4])


def fused_multiply_adds(output_shape: tuple[int, ...], weight_shape: tuple[int, ...], kernel_size: list[int]) -> int:
    """Returns the multiply-adds of fused_involution2d: those of the 1x1 convolution and those of the involution."""
    pixels = output_shape[0] * prod(output_shape[2:])
    return pixels * prod(weight_shape) + multiply_adds(output_shape, kernel_size)


@register_flop_formula(torch.ops.mmrednet.fused_involution2d)
def _fused(input_shape, features_shape, weight_shape, bias_shape, kernel_size, *args, out_shape, **kwargs) -> int:
    return 2 * fused_multiply_adds(out_shape, weight_shape, kernel_size)


@register_flop_formula(torch.ops.mmrednet.involution2d_grad_input)
def _grad_input(grad_output_shape, kernel_shape, *args, out_shape, **kwargs) -> int:
    return 2 * multiply_adds(grad_output_shape, kernel_shape[2:4])


@register_flop_formula([torch.ops.mmrednet.involution2d_grad_kernel, torch.ops.mmrednet.window_product2d])
def _grad_kernel(grad_output_shape, input_shape, *args, out_shape, **kwargs) -> int:
    return 2 * multiply_adds(grad_output_shape, out_shape[2:4])
