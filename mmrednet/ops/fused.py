"""Kernel generation and involution in one: the generated kernels, K*K*G values a pixel, never reach memory."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from . import reference
from .involution2d import (
    GEOMETRY,
    LIBRARY,
    IntPair,
    call,
    cast_for_autocast,
    check_arguments,
    empty_output,
    pair,
    register,
    register_autocast,
    resolve,
    same_padding,
)
from .pytorch import generate_kernel


def fused_involution2d(
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: IntPair,
    stride: IntPair = 1,
    padding: IntPair | None = None,
    dilation: IntPair = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Involution with the kernels that a 1x1 convolution makes from ``features``: W1 of eq. 6 and eq. 4 in one.

    The result is that of ``involution2d(input, conv2d(features, weight, bias).unflatten(1, (G, Kh, Kw)), ...)``. On the
    CPU a work item generates the kernels of a few pixels, in the cache, right before it uses them; in CUDA a thread
    does so in registers, where R is small enough that this is estimated to pay. Elsewhere, and in the other backends,
    the one follows the other. For the gradients the kernels are generated again, which takes the time of the 1x1
    convolution and saves keeping them from the forward pass to the backward pass.

    Args:
        input (Tensor): ``X``, of shape (N, C, H, W), in float16, bfloat16, float32 or float64.
        features (Tensor): What the kernels are made from, of shape (N, R, Ho, Wo). Device and dtype of all tensors are
            those of ``input``; autocast casts them.
        weight (Tensor): The convolution's weight, of shape (G * Kh * Kw, R, 1, 1).
        bias (Tensor, optional): Its bias, of shape (G * Kh * Kw,), or None.
        kernel_size (int or pair): Kh and Kw.
        stride (int or pair): As in :func:`mmrednet.ops.involution2d`, like all that follow. Defaults to 1.
        padding (int or pair, optional): Zero padding in pixels. Defaults to None, 'same'.
        dilation (int or pair): Distance between taps in pixels. Defaults to 1.
        backend (str, optional): 'reference', 'torch', 'cpu', 'cuda' or None. Defaults to None.

    Returns:
        Tensor: ``Y``, of shape (N, C, Ho, Wo).

    Raises:
        TypeError: An argument is not a tensor, or dtypes differ or are not those above.
        ValueError: Shapes, devices, stride, padding, dilation or backend do not fit.
    """
    kernel_size, stride = pair('kernel_size', kernel_size, 1), pair('stride', stride, 1)
    dilation = pair('dilation', dilation, 1)
    padding = same_padding(kernel_size, dilation) if padding is None else pair('padding', padding, 0)
    _check_tensors(input, features, weight, bias)
    if backend == 'reference':
        input, *tensors = cast_for_autocast(input.device.type, input, features, weight, bias)
        check_arguments(input, _shape_of_kernel(input, *tensors, kernel_size), stride, padding, dilation)
        return reference.involution2d(input, generate_kernel(*tensors, kernel_size), stride, padding, dilation)
    return call(
        torch.ops.mmrednet.fused_involution2d.default,
        *(input, features, weight, bias, kernel_size, stride, padding, dilation, backend),
    )


def _check_tensors(input: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, value, rank, layout in (
        ('input', input, 4, '(N, C, H, W)'),
        ('features', features, 4, '(N, R, Ho, Wo)'),
        ('weight', weight, 4, '(G * Kh * Kw, R, 1, 1)'),
        ('bias', bias, 1, '(G * Kh * Kw,)'),
    ):
        if name == 'bias' and value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f'{name} must be a tensor of shape {layout}, but is of type {type(value).__name__}')
        if value.dim() != rank:
            raise ValueError(f'{name} must have {rank} dimensions {layout}, but its shape is {tuple(value.shape)}')


def _shape_of_kernel(
    input: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None, kernel_size: Sequence[int]
) -> Tensor:
    """Returns a tensor with the shape (N, G, Kh, Kw, Ho, Wo) of the generated kernel, and with no memory of its own.

    Raises:
        TypeError: The dtypes or devices differ.
        ValueError: The shapes do not fit.
    """
    _check_tensors(input, features, weight, bias)
    for name, value in (('features', features), ('weight', weight), ('bias', bias)):
        if value is not None and (value.dtype != input.dtype or value.device != input.device):
            raise TypeError(
                f'{name} must have the dtype and device of input, {input.dtype} on {input.device}, '
                f'but is {value.dtype} on {value.device}'
            )
    channels, taps = weight.shape[0], prod(kernel_size)
    if channels % taps != 0 or weight.shape[1] != features.shape[1] or weight.shape[2] != 1 or weight.shape[3] != 1:
        raise ValueError(
            f'weight must have the shape (G * Kh * Kw, R, 1, 1), for kernel_size {tuple(kernel_size)} and the '
            f'R = {features.shape[1]} channels of features, but its shape is {tuple(weight.shape)}'
        )
    if bias is not None and bias.shape[0] != channels:
        raise ValueError(f'bias must have the shape ({channels},), as weight has, but it is {tuple(bias.shape)}')
    n, _, ho, wo = features.shape
    return features.new_empty(1).expand(n, channels // taps, *kernel_size, ho, wo)


def _forward(input, features, weight, bias, kernel_size, stride, padding, dilation, backend=None):
    kernel = _shape_of_kernel(input, features, weight, bias, kernel_size)
    check_arguments(input, kernel, stride, padding, dilation)
    out = empty_output(input, input.shape[1], kernel.shape[4:])
    if out.numel():
        module = resolve(backend, input.device)
        module.fused_involution2d(out, input, features, weight, bias, kernel, stride, padding, dilation)
    return out


def _forward_fake(input, features, weight, bias, kernel_size, stride, padding, dilation, backend=None):
    kernel = _shape_of_kernel(input, features, weight, bias, kernel_size)
    check_arguments(input, kernel, stride, padding, dilation)
    return empty_output(input, input.shape[1], kernel.shape[4:])


def _setup(ctx, inputs, output):
    input, features, weight, bias, ctx.kernel_size, *ctx.geometry = inputs
    ctx.save_for_backward(input, features, weight, bias)


def _backward(ctx, grad):
    input, features, weight, bias = ctx.saved_tensors
    grad_input = grad_features = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        kernel = generate_kernel(features, weight, bias, ctx.kernel_size)
        grad_input = call(_OPS.involution2d_grad_input.default, grad, kernel, input.shape[2:], *ctx.geometry)
        del kernel
    if any(ctx.needs_input_grad[1:4]):
        groups = weight.shape[0] // prod(ctx.kernel_size)
        grad_kernel = call(
            _OPS.involution2d_grad_kernel.default, grad, input, groups, ctx.kernel_size, *ctx.geometry
        ).flatten(1, 3)
        mask = list(ctx.needs_input_grad[1:4])
        grad_features, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad_kernel, features, weight, weight.shape[:1], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, mask
        )
    return grad_input, grad_features, grad_weight, grad_bias, None, None, None, None, None


_OPS = torch.ops.mmrednet
LIBRARY.define(
    'fused_involution2d(Tensor input, Tensor features, Tensor weight, Tensor? bias, int[2] kernel_size, '
    f'{GEOMETRY}) -> Tensor',
    tags=torch.Tag.pt2_compliant_tag,
)
register('fused_involution2d', _forward, _forward_fake, _backward, _setup)
register_autocast('fused_involution2d', tensors=4)
