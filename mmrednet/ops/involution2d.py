"""The public operator: argument checks, dispatcher schema, gradients, autocast and the choice of backend."""

import importlib
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from numbers import Integral

import torch
from torch import Tensor

from . import pytorch, reference

BACKENDS = ('reference', 'torch', 'cpu', 'cuda')
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

IntPair = int | Sequence[int]
_INTEGRAL = (int, Integral)  # int first: asking an abstract class takes longer


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

    Pixels outside the input count as zero. Sums run in float32, in float64 for float64. The gradients are gathers of
    the same kind: bit-identical from run to run, and differentiable again.

    Args:
        input (Tensor): ``X``, of shape (N, C, H, W), in float16, bfloat16, float32 or float64. N may be 0.
        kernel (Tensor): ``H``, of shape (N, G, Kh, Kw, Ho, Wo): one Kh x Kw kernel for each output pixel and each of
            the G groups of C / G neighbouring channels. Same device and dtype as ``input``; autocast casts both.
        stride (int or pair): Stride ``s`` in pixels, (vertical, horizontal). Defaults to 1.
        padding (int or pair, optional): Zero padding ``p`` on both sides in pixels. Defaults to None: 'same', which is
            ``dilation * (K - 1) / 2``.
        dilation (int or pair): Distance ``d`` between the window's taps in pixels. Defaults to 1.
        backend (str, optional): 'reference' (plain PyTorch, K*K copies of the input), 'torch' (lean PyTorch), 'cpu'
            (native), 'cuda' (CuPy) or None, the fastest that the device has. Defaults to None.

    Returns:
        Tensor: ``Y``, of shape (N, C, Ho, Wo) with ``Ho = floor((H + 2 p - d (Kh - 1) - 1) / s) + 1``, channels-last
        where ``input`` is.

    Raises:
        TypeError: An argument is not a tensor, or its dtype is not one of those above, or the two dtypes differ.
        ValueError: Shapes, groups, devices, stride, padding, dilation or backend do not fit.

    Example:
        >>> x, h = torch.randn(2, 32, 15, 20), torch.randn(2, 2, 7, 7, 8, 10)
        >>> involution2d(x, h, stride=2).shape
        torch.Size([2, 32, 8, 10])
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f'backend must be None or one of {BACKENDS}, but is {backend!r}')
    _check_tensors(input, kernel)
    stride, dilation = pair('stride', stride, 1), pair('dilation', dilation, 1)
    if padding is None:
        padding = same_padding(tuple(kernel.shape[2:4]), dilation)
    else:
        padding = pair('padding', padding, 0)
    if backend == 'reference':
        input, kernel = cast_for_autocast(input.device.type, input, kernel)
        check_arguments(input, kernel, stride, padding, dilation)
        return reference.involution2d(input, kernel, stride, padding, dilation)
    return call(torch.ops.mmrednet.involution2d.default, input, kernel, stride, padding, dilation, backend)


def same_padding(kernel_size: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    """Returns the padding that keeps the size at stride 1, ``dilation * (K - 1) / 2``, as (vertical, horizontal).

    Raises:
        ValueError: ``dilation * (K - 1)`` is odd, so that no symmetric padding exists.
    """
    if any(d * (k - 1) % 2 for k, d in zip(kernel_size, dilation, strict=True)):
        raise ValueError(
            f"padding None means 'same', which a kernel of {kernel_size[0]}x{kernel_size[1]} with dilation {dilation} "
            'does not have (dilation * (K - 1) is odd): use an odd kernel size or give padding'
        )
    return tuple(d * (k - 1) // 2 for k, d in zip(kernel_size, dilation, strict=True))


def output_size(
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Returns (Ho, Wo), each ``floor((size + 2 p - d (K - 1) - 1) / s) + 1``, for pairs of (vertical, horizontal)."""
    return tuple(
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(input_size, kernel_size, stride, padding, dilation, strict=True)
    )


def pair(name: str, value: IntPair, least: int) -> tuple[int, int]:
    """Returns ``value`` as (vertical, horizontal).

    Raises:
        ValueError: ``value``, the argument called ``name``, is no int or pair of ints of at least ``least``.
    """
    values = (value, value) if isinstance(value, _INTEGRAL) else value
    if not isinstance(values, (tuple, list)) or len(values) != 2 or not all(isinstance(v, _INTEGRAL) for v in values):
        raise ValueError(f'{name} must be an int or a pair of ints, but is {value!r}')
    if min(values) < least:
        raise ValueError(f'{name} must be at least {least}, but is {value!r}')
    return int(values[0]), int(values[1])


def _check_tensors(input: Tensor, kernel: Tensor) -> None:
    """Raises where the two are no tensors, or not of the rank that reading their sizes takes."""
    for name, value, rank, layout in (
        ('input', input, 4, '(N, C, H, W)'),
        ('kernel', kernel, 6, '(N, G, Kh, Kw, Ho, Wo)'),
    ):
        if not isinstance(value, Tensor):
            raise TypeError(f'{name} must be a tensor of shape {layout}, but is of type {type(value).__name__}')
        if value.dim() != rank:
            raise ValueError(f'{name} must have {rank} dimensions {layout}, but its shape is {tuple(value.shape)}')


def check_arguments(
    input: Tensor, kernel: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> None:
    """Raises where the operator is not defined. Every path comes through here, torch.ops and torch.compile included."""
    _check_tensors(input, kernel)
    if min(*stride, *dilation) < 1 or min(padding) < 0:
        raise ValueError(
            'stride and dilation must be at least 1 and padding at least 0, '
            f'but they are {tuple(stride)}, {tuple(dilation)} and {tuple(padding)}'
        )
    for name, tensor in (('input', input), ('kernel', kernel)):
        if tensor.dtype not in DTYPES:
            raise TypeError(
                f'{name} must be float16, bfloat16, float32 or float64, but is {tensor.dtype}: cast it first'
            )
    if input.dtype != kernel.dtype:
        raise TypeError(
            f'input and kernel must have the same dtype, but are {input.dtype} and {kernel.dtype}: cast one of them'
        )
    if input.device != kernel.device:
        raise ValueError(
            f'input and kernel must be on one device, but are on {input.device} and {kernel.device}: move one of them'
        )
    n, c, h, w = input.shape
    kernel_n, g, kh, kw, ho, wo = kernel.shape
    if kernel_n != n:
        raise ValueError(
            f'kernel must have the batch size of input, {n}, but its shape {tuple(kernel.shape)} has {kernel_n}'
        )
    if g < 1 or kh < 1 or kw < 1:
        raise ValueError(f'kernel must have at least one group and one tap, but its shape is {tuple(kernel.shape)}')
    if c % g != 0:
        raise ValueError(
            f'the number of groups of kernel, {g} (its dimension 1), must divide the {c} channels of input: '
            'generate the kernel for a number of groups that does'
        )
    expected = output_size((h, w), (kh, kw), stride, padding, dilation)
    # Not min(): under torch.compile that would tie the program to images that are wider than high.
    if expected[0] < 1 or expected[1] < 1:
        raise ValueError(
            f'input of {h}x{w} with padding {tuple(padding)} is smaller than the window of {kh}x{kw} with dilation '
            f'{tuple(dilation)}: increase padding'
        )
    if expected[0] != ho or expected[1] != wo:
        raise ValueError(
            f'kernel must hold kernels for {expected[0]}x{expected[1]} output pixels (input {h}x{w}, '
            f'stride {tuple(stride)}, padding {tuple(padding)}, dilation {tuple(dilation)}), '
            f'but its shape {tuple(kernel.shape)} has {ho}x{wo}'
        )


def resolve(backend: str | None, device: torch.device):
    """Returns the module that computes: the named backend's, or the best one that works on the device."""
    if backend is None:
        return _default_backend(device.type)
    if backend == 'torch':
        return pytorch
    if backend not in ('cpu', 'cuda'):
        raise ValueError(f'backend must be None or one of {BACKENDS}, but is {backend!r}')
    if backend != device.type:
        raise ValueError(
            f'backend {backend!r} is for {backend} tensors, but input is on {device}: move it, or leave backend at None'
        )
    return _native_backend(backend)


@cache
def _default_backend(device_type: str):
    if device_type not in ('cpu', 'cuda'):
        return pytorch
    try:
        return _native_backend(device_type)
    except RuntimeError as error:
        warnings.warn(f'involution2d falls back to the slower PyTorch backend on {device_type}: {error}', stacklevel=2)
        return pytorch


@cache
def _native_backend(name: str):
    """Raises RuntimeError, which says what to install, where the backend cannot be used."""
    module = importlib.import_module(f'.{name}', __package__)
    module.load()
    return module


# The dispatcher's side. Each operator is bilinear, and the gradients of the three are the three again.

LIBRARY = torch.library.Library('mmrednet', 'DEF')
GEOMETRY = 'int[2] stride, int[2] padding, int[2] dilation, str? backend=None'
LIBRARY.define(f'involution2d(Tensor input, Tensor kernel, {GEOMETRY}) -> Tensor', tags=torch.Tag.pt2_compliant_tag)
LIBRARY.define(
    f'involution2d_grad_input(Tensor grad_output, Tensor kernel, SymInt[2] input_size, {GEOMETRY}) -> Tensor',
    tags=torch.Tag.pt2_compliant_tag,
)
LIBRARY.define(
    f'involution2d_grad_kernel(Tensor grad_output, Tensor input, int groups, int[2] kernel_size, {GEOMETRY}) -> Tensor',
    tags=torch.Tag.pt2_compliant_tag,
)


def is_channels_last(tensor: Tensor) -> bool:
    """Whether (N, C, H, W) lies in memory as (N, H, W, C) and not, as a tensor that is both, as (N, C, H, W)."""
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def empty_output(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """Returns an uninitialised (N, channels, *size) tensor in the dtype and memory format of ``like`` (N, C, H, W)."""
    memory_format = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    return torch.empty(
        (like.shape[0], channels, *size), dtype=like.dtype, device=like.device, memory_format=memory_format
    )


def empty_kernel(like: Tensor, groups: int, kernel_size: Sequence[int]) -> Tensor:
    """Returns an uninitialised (N, G, Kh, Kw, Ho, Wo) tensor, laid out as a 1x1 convolution of ``like`` would."""
    return empty_output(like, groups * prod(kernel_size), like.shape[2:]).unflatten(1, (groups, *kernel_size))


def _forward(input, kernel, stride, padding, dilation, backend=None):
    check_arguments(input, kernel, stride, padding, dilation)
    out = empty_output(input, input.shape[1], kernel.shape[4:])
    if out.numel():
        resolve(backend, input.device).involution2d(out, input, kernel, stride, padding, dilation)
    return out


def _forward_fake(input, kernel, stride, padding, dilation, backend=None):
    check_arguments(input, kernel, stride, padding, dilation)
    return empty_output(input, input.shape[1], kernel.shape[4:])


def _grad_input(grad_output, kernel, input_size, stride, padding, dilation, backend=None):
    grad_input = _grad_input_fake(grad_output, kernel, input_size, stride, padding, dilation, backend)
    if grad_input.numel():
        resolve(backend, kernel.device).grad_input(grad_input, grad_output, kernel, stride, padding, dilation)
    return grad_input


def _grad_input_fake(grad_output, kernel, input_size, stride, padding, dilation, backend=None):
    grad_input = empty_output(grad_output, grad_output.shape[1], input_size)
    check_arguments(grad_input, kernel, stride, padding, dilation)
    _check_grad_output(grad_output, kernel)
    return grad_input


def _grad_kernel(grad_output, input, groups, kernel_size, stride, padding, dilation, backend=None):
    grad_kernel = _grad_kernel_fake(grad_output, input, groups, kernel_size, stride, padding, dilation, backend)
    if grad_kernel.numel():
        resolve(backend, input.device).grad_kernel(grad_kernel, grad_output, input, stride, padding, dilation)
    return grad_kernel


def _grad_kernel_fake(grad_output, input, groups, kernel_size, stride, padding, dilation, backend=None):
    grad_kernel = empty_kernel(grad_output, groups, kernel_size)
    check_arguments(input, grad_kernel, stride, padding, dilation)
    _check_grad_output(grad_output, input)
    return grad_kernel


def _check_grad_output(grad_output: Tensor, other: Tensor) -> None:
    if grad_output.dtype != other.dtype or grad_output.device != other.device:
        raise TypeError(
            'grad_output must have the dtype and device of the other tensor, '
            f'but is {grad_output.dtype} on {grad_output.device}, not {other.dtype} on {other.device}'
        )
    if other.dim() == 6 and grad_output.shape[2:] != other.shape[4:]:
        raise ValueError(
            f'grad_output must be {tuple(other.shape[4:])} high and wide as kernel is, '
            f'but its shape is {tuple(grad_output.shape)}'
        )
    if other.dim() == 4 and grad_output.shape[:2] != other.shape[:2]:
        raise ValueError(
            f'grad_output must have the batch size and channels of input, {tuple(other.shape[:2])}, '
            f'but its shape is {tuple(grad_output.shape)}'
        )


def _setup_forward(ctx, inputs, output):
    input, kernel, *ctx.geometry = inputs
    ctx.save_for_backward(input, kernel)


def _backward_forward(ctx, grad):
    input, kernel = ctx.saved_tensors
    grad_input = grad_kernel = None
    if ctx.needs_input_grad[0]:
        grad_input = call(_OPS.involution2d_grad_input.default, grad, kernel, input.shape[2:], *ctx.geometry)
    if ctx.needs_input_grad[1]:
        grad_kernel = call(
            _OPS.involution2d_grad_kernel.default, grad, input, kernel.shape[1], kernel.shape[2:4], *ctx.geometry
        )
    return grad_input, grad_kernel, None, None, None, None


def _setup_grad_input(ctx, inputs, output):
    grad_output, kernel, _, *ctx.geometry = inputs
    ctx.save_for_backward(grad_output, kernel)


def _backward_grad_input(ctx, grad):
    grad_output, kernel = ctx.saved_tensors
    grad_grad_output = grad_kernel = None
    if ctx.needs_input_grad[0]:
        grad_grad_output = call(_OPS.involution2d.default, grad, kernel, *ctx.geometry)
    if ctx.needs_input_grad[1]:
        grad_kernel = call(
            _OPS.involution2d_grad_kernel.default, grad_output, grad, kernel.shape[1], kernel.shape[2:4], *ctx.geometry
        )
    return grad_grad_output, grad_kernel, None, None, None, None, None


def _setup_grad_kernel(ctx, inputs, output):
    grad_output, input, _, _, *ctx.geometry = inputs
    ctx.save_for_backward(grad_output, input)


def _backward_grad_kernel(ctx, grad):
    grad_output, input = ctx.saved_tensors
    grad_grad_output = grad_input = None
    if ctx.needs_input_grad[0]:
        grad_grad_output = call(_OPS.involution2d.default, input, grad, *ctx.geometry)
    if ctx.needs_input_grad[1]:
        grad_input = call(_OPS.involution2d_grad_input.default, grad_output, grad, input.shape[2:], *ctx.geometry)
    return grad_grad_output, grad_input, None, None, None, None, None, None


def call(operator: torch._ops.OpOverload, *args) -> Tensor:
    """Calls an operator, where no gradients are recorded past autograd's layer: of a small call it takes the most."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return operator(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args)


def cast_for_autocast(device_type: str, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Brings tensors to autocast's dtype where autocast is on, but for float64, which stays as in convolutions."""
    given = [t for t in tensors if t is not None]
    if not torch.is_autocast_enabled(device_type) or any(t.dtype not in DTYPES[:3] for t in given):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def register(name: str, implementation: Callable, fake: Callable, backward: Callable, setup: Callable) -> None:
    """Gives the dispatcher an operator that is defined: its implementation, shapes and gradients."""
    LIBRARY.impl(name, implementation, 'CompositeExplicitAutograd')
    torch.library.register_fake(f'mmrednet::{name}', fake, lib=LIBRARY)
    torch.library.register_autograd(f'mmrednet::{name}', backward, setup_context=setup, lib=LIBRARY)


def register_autocast(name: str, tensors: int) -> None:
    """Lets autocast cast an operator's first arguments, so many tensors."""

    def make(device_type: str, key: torch._C.DispatchKey) -> Callable:
        def forward(*args):
            args = *cast_for_autocast(device_type, *args[:tensors]), *args[tensors:]
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
                return getattr(_OPS, name)(*args)

        return forward

    LIBRARY.impl(name, make('cpu', torch._C.DispatchKey.AutocastCPU), 'AutocastCPU')
    LIBRARY.impl(name, make('cuda', torch._C.DispatchKey.AutocastCUDA), 'AutocastCUDA')


_OPS = torch.ops.mmrednet
register('involution2d', _forward, _forward_fake, _backward_forward, _setup_forward)
register('involution2d_grad_input', _grad_input, _grad_input_fake, _backward_grad_input, _setup_grad_input)
register('involution2d_grad_kernel', _grad_kernel, _grad_kernel_fake, _backward_grad_kernel, _setup_grad_kernel)
register_autocast('involution2d', tensors=2)
