"""The public function of involution, and three operators. The gradients of each operator are the other two."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .arguments import IntPair, check_grad_output, check_ranks, check_shapes, check_tensors, to_pairs
from .backends import check_backend, find, reference
from .dispatcher import GEOMETRY, OPERATORS, Operator, add_tangents, call, cast_for_autocast, map_over_batch, register


def involution2d(
    input: Tensor,
    kernel: Tensor,
    stride: IntPair = 1,
    padding: IntPair | None = None,
    dilation: IntPair = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Involution: every output pixel is a weighted sum over its own window, with its own weights (eq. 4).

    .. math::
        Y_{n,c,i,j} = \sum_{u,v} H_{n,g(c),u,v,i,j} X_{n,c,\,i s - p + u d,\,j s - p + v d},
        \qquad g(c) = \lfloor c\,G / C \rfloor

    Pixels outside the input contribute nothing, whatever values the kernel has for them. Sums are accumulated in
    float32, or in float64 for float64 tensors. The gradients are sums of the same kind in a fixed order: they are
    bit-identical from run to run, and differentiable.

    Args:
        input (Tensor): ``X``, of shape (N, C, H, W), in float16, bfloat16, float32 or float64. N may be 0.
        kernel (Tensor): ``H``, of shape (N, G, Kh, Kw, Ho, Wo): one Kh x Kw kernel for each output pixel and each of
            the G groups of C / G neighbouring channels. Same device and dtype as ``input``. Autocast casts both.
        stride (int or pair): Stride ``s`` in pixels, (vertical, horizontal). Defaults to 1.
        padding (int or pair, optional): Zero padding ``p`` on both sides in pixels. Defaults to None: 'same', which is
            ``dilation * (K - 1) / 2``.
        dilation (int or pair): Distance ``d`` between the window's taps in pixels. Defaults to 1.
        backend (str, optional): 'reference' (plain PyTorch, K*K copies of the input), 'torch' (PyTorch without
            unfolding), 'cpu' (C++), 'cuda' (CuPy), or None: the fastest that works on the device. Defaults to None.

    Returns:
        Tensor: ``Y``, of shape (N, C, Ho, Wo) with ``Ho = floor((H + 2 p - d (Kh - 1) - 1) / s) + 1``, channels-last
        if ``input`` is.

    Raises:
        TypeError: An argument is not a tensor, or its dtype is not one of those above, or the two dtypes differ.
        ValueError: Shapes, groups, devices, stride, padding, dilation or backend do not fit.

    Example:
        >>> x, h = torch.randn(2, 32, 15, 20), torch.randn(2, 2, 7, 7, 8, 10)
        >>> involution2d(x, h, stride=2).shape
        torch.Size([2, 32, 8, 10])
    """
    if has_torch_function((input, kernel)):
        arguments = dict(stride=stride, padding=padding, dilation=dilation, backend=backend)
        return handle_torch_function(involution2d, (input, kernel), input, kernel, **arguments)
    check_backend(backend)
    check_ranks(input=input, kernel=kernel)
    stride, padding, dilation = to_pairs(kernel.shape[2:4], stride, padding, dilation)
    if backend == 'reference':
        input, kernel = cast_for_autocast(input.device.type, input, kernel)
        check_tensors(input=input, kernel=kernel)
        check_shapes(input.shape, kernel.shape, stride, padding, dilation)
        return reference.involution2d(input, kernel, stride, padding, dilation)
    return call(OPERATORS.involution2d.default, input, kernel, stride, padding, dilation, backend)


def grad_input(grad_output: Tensor, kernel: Tensor, size: Sequence[int], *geometry) -> Tensor:
    """Returns the gradient of eq. 4 with respect to the input of height and width ``size``."""
    return call(OPERATORS.involution2d_grad_input.default, grad_output, kernel, size, *geometry)


def grad_kernel(grad_output: Tensor, input: Tensor, groups: int, kernel_size: Sequence[int], *geometry) -> Tensor:
    """Returns the gradient of eq. 4 with respect to the kernel."""
    return call(OPERATORS.involution2d_grad_kernel.default, grad_output, input, groups, kernel_size, *geometry)


class Bilinear(Operator):
    """An operator that is linear in each of its first two arguments. The batch is dimension 0 of both."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        first, second, *ctx.rest = inputs
        ctx.save_for_backward(first, second)
        ctx.save_for_forward(first, second)

    @classmethod
    def jvp(cls, ctx, first_tangent, second_tangent, *_):
        """Returns the sum of two terms, each with one argument replaced by its tangent."""
        first, second = ctx.saved_tensors
        return add_tangents(
            call(cls.overload, first_tangent, second, *ctx.rest), call(cls.overload, first, second_tangent, *ctx.rest)
        )

    @classmethod
    def vmap(cls, info, in_dims, first, second, *rest):
        return map_over_batch(info, in_dims[:2], (first, second), cls.overload, *rest)


@register
class Involution2d(Bilinear):
    """Eq. 4."""

    schema = f'involution2d(Tensor input, Tensor kernel, {GEOMETRY}) -> Tensor'
    tensors = 2

    @staticmethod
    def fake(input, kernel, stride, padding, dilation, backend=None):
        check_tensors(input=input, kernel=kernel)
        check_shapes(input.shape, kernel.shape, stride, padding, dilation)
        return empty_output(input, input.shape[1], kernel.shape[4:])

    @staticmethod
    def compute(input, kernel, stride, padding, dilation, backend=None):
        out = Involution2d.fake(input, kernel, stride, padding, dilation)
        if out.numel():
            find(backend, input.device).involution2d(out, input, kernel, stride, padding, dilation)
        return out

    @staticmethod
    def backward(ctx, grad):
        input, kernel = ctx.saved_tensors
        return (
            grad_input(grad, kernel, input.shape[2:], *ctx.rest) if ctx.needs_input_grad[0] else None,
            grad_kernel(grad, input, kernel.shape[1], kernel.shape[2:4], *ctx.rest)
            if ctx.needs_input_grad[1]
            else None,
            *[None] * len(ctx.rest),
        )


@register
class GradInput(Bilinear):
    """The gradient of eq. 4 with respect to the input."""

    schema = f'involution2d_grad_input(Tensor grad_output, Tensor kernel, SymInt[2] input_size, {GEOMETRY}) -> Tensor'

    @staticmethod
    def fake(grad_output, kernel, input_size, stride, padding, dilation, backend=None):
        check_tensors(grad_output=grad_output, kernel=kernel)
        shape = (*grad_output.shape[:2], *input_size)
        check_shapes(shape, kernel.shape, stride, padding, dilation)
        check_grad_output(grad_output.shape, (*shape[:2], *kernel.shape[4:]))
        return empty_output(grad_output, shape[1], input_size)

    @staticmethod
    def compute(grad_output, kernel, input_size, stride, padding, dilation, backend=None):
        out = GradInput.fake(grad_output, kernel, input_size, stride, padding, dilation)
        if out.numel():
            find(backend, kernel.device).grad_input(out, grad_output, kernel, stride, padding, dilation)
        return out

    @staticmethod
    def backward(ctx, grad):
        grad_output, kernel = ctx.saved_tensors
        _, *geometry = ctx.rest
        groups, kernel_size = kernel.shape[1], kernel.shape[2:4]
        return (
            call(OPERATORS.involution2d.default, grad, kernel, *geometry) if ctx.needs_input_grad[0] else None,
            grad_kernel(grad_output, grad, groups, kernel_size, *geometry) if ctx.needs_input_grad[1] else None,
            *[None] * len(ctx.rest),
        )


@register
class GradKernel(Bilinear):
    """The gradient of eq. 4 with respect to the kernel."""

    schema = (
        'involution2d_grad_kernel(Tensor grad_output, Tensor input, int groups, int[2] kernel_size, '
        f'{GEOMETRY}) -> Tensor'
    )

    @staticmethod
    def fake(grad_output, input, groups, kernel_size, stride, padding, dilation, backend=None):
        check_tensors(grad_output=grad_output, input=input)
        kernel_shape = (grad_output.shape[0], groups, *kernel_size, *grad_output.shape[2:])
        check_shapes(input.shape, kernel_shape, stride, padding, dilation)
        check_grad_output(grad_output.shape, (*input.shape[:2], *kernel_shape[4:]))
        out = empty_output(grad_output, groups * prod(kernel_size), grad_output.shape[2:])
        return out.unflatten(1, (groups, *kernel_size))

    @classmethod
    def compute(cls, first, second, groups, kernel_size, stride, padding, dilation, backend=None):
        out = cls.fake(first, second, groups, kernel_size, stride, padding, dilation)
        if out.numel():
            find(backend, first.device).grad_kernel(out, first, second, stride, padding, dilation)
        return out

    @staticmethod
    def backward(ctx, grad):
        grad_output, input = ctx.saved_tensors
        _, _, *geometry = ctx.rest
        return (
            call(OPERATORS.involution2d.default, input, grad, *geometry) if ctx.needs_input_grad[0] else None,
            grad_input(grad_output, grad, input.shape[2:], *geometry) if ctx.needs_input_grad[1] else None,
            *[None] * len(ctx.rest),
        )


def empty_output(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """Returns an uninitialised (N, channels, *size) tensor in the dtype and memory format of ``like`` (N, C, H, W)."""
    shape = like.shape[0], channels, *size
    # A tensor in both formats counts as contiguous.
    if like.is_contiguous() or not like.is_contiguous(memory_format=torch.channels_last):
        return like.new_empty(shape)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
