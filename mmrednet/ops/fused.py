"""Kernel generation and involution in one operator.

On the CPU, the generated kernels (G*K*K values for each pixel) stay in the cache.
"""

from math import prod

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .arguments import IntPair, check_ranks, check_shapes, check_tensors, generated_shape, pair, to_pairs
from .backends import check_backend, find, reference
from .backends.pytorch import generate_kernel
from .dispatcher import (
    GEOMETRY,
    OPERATORS,
    Operator,
    add_tangents,
    call,
    cast_for_autocast,
    expand,
    map_over_batch,
    register,
)
from .involution import empty_output, grad_input, grad_kernel


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
    r"""Involution with the kernels that a 1x1 convolution generates from ``features``: W1 of eq. 6, then eq. 4.

    The result equals ``involution2d(input, conv2d(features, weight, bias).unflatten(1, (G, Kh, Kw)), ...)``. The CPU
    backend generates the kernels of a few pixels right before it uses them. The other backends compute the whole
    convolution first and then the involution. The backward pass generates the kernels again: this takes the time of the
    1x1 convolution, and saves the memory of the kernels between the two passes.

    Args:
        input (Tensor): ``X``, of shape (N, C, H, W), in float16, bfloat16, float32 or float64.
        features (Tensor): The input of the convolution, of shape (N, R, Ho, Wo). All tensors have the device and dtype
            of ``input``. Autocast casts them.
        weight (Tensor): The convolution's weight, of shape (G * Kh * Kw, R, 1, 1).
        bias (Tensor, optional): Its bias, of shape (G * Kh * Kw,), or None.
        kernel_size (int or pair): Kh and Kw.
        stride (int or pair): Stride in pixels, (vertical, horizontal). Defaults to 1.
        padding (int or pair, optional): Zero padding in pixels. Defaults to None, 'same'.
        dilation (int or pair): Distance between taps in pixels. Defaults to 1.
        backend (str, optional): As in :func:`involution2d`. Defaults to None.

    Returns:
        Tensor: ``Y``, of shape (N, C, Ho, Wo).

    Raises:
        TypeError: An argument is not a tensor, or dtypes differ or are not those above.
        ValueError: Shapes, devices, stride, padding, dilation or backend do not fit.
    """
    if has_torch_function((input, features, weight)):
        arguments = dict(stride=stride, padding=padding, dilation=dilation, backend=backend)
        given = (input, features, weight, bias)
        return handle_torch_function(fused_involution2d, given[:3], *given, kernel_size, **arguments)
    check_backend(backend)
    kernel_size = pair('kernel_size', kernel_size, 1)
    geometry = to_pairs(kernel_size, stride, padding, dilation)
    check_ranks(input=input, features=features, weight=weight, bias=bias)
    if backend == 'reference':
        input, features, weight, bias = cast_for_autocast(input.device.type, input, features, weight, bias)
        _check(input, features, weight, bias, kernel_size, *geometry)
        return reference.involution2d(input, generate_kernel(features, weight, bias, kernel_size), *geometry)
    operator = OPERATORS.fused_involution2d.default
    return call(operator, input, features, weight, bias, kernel_size, *geometry, backend)


def _check(input, features, weight, bias, kernel_size, stride, padding, dilation) -> None:
    check_tensors(input=input, features=features, weight=weight, bias=bias)
    kernel_shape = generated_shape(features.shape, weight.shape, None if bias is None else bias.shape, kernel_size)
    check_shapes(input.shape, kernel_shape, stride, padding, dilation)


@register
class FusedInvolution2d(Operator):
    """The 1x1 convolution W1 of eq. 6, then eq. 4."""

    schema = (
        'fused_involution2d(Tensor input, Tensor features, Tensor weight, Tensor? bias, int[2] kernel_size, '
        f'{GEOMETRY}) -> Tensor'
    )
    tensors = 4

    @staticmethod
    def fake(input, features, weight, bias, kernel_size, stride, padding, dilation, backend=None):
        _check(input, features, weight, bias, kernel_size, stride, padding, dilation)
        return empty_output(input, input.shape[1], features.shape[2:])

    @staticmethod
    def compute(input, features, weight, bias, kernel_size, stride, padding, dilation, backend=None):
        out = FusedInvolution2d.fake(input, features, weight, bias, kernel_size, stride, padding, dilation)
        if not out.numel():
            return out
        module = find(backend, input.device)
        if hasattr(module, 'fused_involution2d'):
            module.fused_involution2d(out, input, features, weight, bias, tuple(kernel_size), stride, padding, dilation)
        else:
            kernel = generate_kernel(features, weight, bias, kernel_size)
            module.involution2d(out, input, kernel, stride, padding, dilation)
        return out

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.kernel_size = inputs[:5]
        ctx.geometry = inputs[5:]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, grad):
        input, features, weight, bias = ctx.saved_tensors
        grads = [None] * (5 + len(ctx.geometry))
        if ctx.needs_input_grad[0]:
            kernel = generate_kernel(features, weight, bias, ctx.kernel_size)
            grads[0] = grad_input(grad, kernel, input.shape[2:], *ctx.geometry)
            del kernel
        if any(ctx.needs_input_grad[1:4]):
            groups = weight.shape[0] // prod(ctx.kernel_size)
            grad = grad_kernel(grad, input, groups, ctx.kernel_size, *ctx.geometry)
            # Autograd's own vmap (is_grads_batched) has no rule for `flatten`.
            grad = grad.reshape(features.shape[0], weight.shape[0], *features.shape[2:])
            mask = list(ctx.needs_input_grad[1:4])
            grads[1:4] = torch.ops.aten.convolution_backward(
                grad, features, weight, weight.shape[:1], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, mask
            )
        return tuple(grads)

    @staticmethod
    def jvp(ctx, input_tangent, features_tangent, weight_tangent, bias_tangent, *_):
        """Returns the sum of three terms. The tangents replace input, then features, then weight and bias."""
        input, features, weight, bias = ctx.saved_tensors
        overload, rest = OPERATORS.fused_involution2d.default, (ctx.kernel_size, *ctx.geometry)
        return add_tangents(
            call(overload, input_tangent, features, weight, bias, *rest),
            call(overload, input, features_tangent, weight, None, *rest),
            call(overload, input, features, weight_tangent, bias_tangent, *rest),
        )

    @staticmethod
    def vmap(info, in_dims, input, features, weight, bias, kernel_size, *geometry):
        if in_dims[2] is None and in_dims[3] is None:
            rest = weight, bias, kernel_size, *geometry
            return map_over_batch(info, in_dims[:2], (input, features), OPERATORS.fused_involution2d.default, *rest)
        # If each mapped element has its own weight, one einsum generates all kernels first.
        features, weight = expand(info, in_dims[1], features), expand(info, in_dims[2], weight)
        kernel = torch.einsum('bkr, bnrij -> bnkij', weight.flatten(2), features)
        if bias is not None:
            kernel = kernel + expand(info, in_dims[3], bias)[:, None, :, None, None]
        tensors = input, kernel.unflatten(2, (-1, *kernel_size))
        return map_over_batch(info, (in_dims[0], 0), tensors, OPERATORS.involution2d.default, *geometry)
