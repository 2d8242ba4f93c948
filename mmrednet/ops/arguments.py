"""Shape rules and argument checks of the operators. The checks read shapes only and allocate nothing."""

from collections.abc import Sequence
from math import prod
from numbers import Integral

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# The number of dimensions of each tensor argument, and its shape for error messages.
LAYOUTS = {
    'input': (4, '(N, C, H, W)'),
    'kernel': (6, '(N, G, Kh, Kw, Ho, Wo)'),
    'grad_output': (4, '(N, C, Ho, Wo)'),
    'query': (4, '(N, C, Ho, Wo)'),
    'key': (4, '(N, C, H, W)'),
    'features': (4, '(N, R, Ho, Wo)'),
    'weight': (4, '(G * Kh * Kw, R, 1, 1)'),
    'bias': (1, '(G * Kh * Kw,)'),
}

Ints = Sequence[int]
IntPair = int | Ints
_INTEGRAL = (int, Integral)  # int comes first: isinstance is slower with an abstract class


def pair(name: str, value: IntPair, least: int) -> tuple[int, int]:
    """Returns an argument as (vertical, horizontal): see :func:`ints`."""
    if type(value) is int and value >= least:  # faster, for the most common case
        return value, value
    vertical, horizontal = ints(name, value, least, 2)
    return vertical, horizontal


def ints(name: str, value: IntPair, least: int, count: int) -> tuple[int, ...]:
    """Returns an argument as ``count`` ints. Raises ValueError unless it is one int or ``count`` ints >= ``least``."""
    values = (value,) * count if isinstance(value, _INTEGRAL) else value
    fits = isinstance(values, (tuple, list)) and len(values) == count and all(isinstance(v, _INTEGRAL) for v in values)
    if not fits:
        raise ValueError(f'{name} must be an int or {"a pair of" if count == 2 else "three"} ints, but is {value!r}')
    if min(values) < least:
        raise ValueError(f'{name} must be at least {least}, but is {value!r}')
    return tuple(map(int, values))


def to_pairs(
    kernel_size: Ints, stride: IntPair, padding: IntPair | None, dilation: IntPair
) -> tuple[tuple[int, int], ...]:
    """Returns stride, padding and dilation as (vertical, horizontal). Padding None means 'same'."""
    stride, dilation = pair('stride', stride, 1), pair('dilation', dilation, 1)
    padding = same_padding(kernel_size, dilation) if padding is None else pair('padding', padding, 0)
    return stride, padding, dilation


def same_padding(kernel_size: Ints, dilation: Ints) -> tuple[int, int]:
    """Returns the padding that keeps the size at stride 1, ``dilation * (K - 1) / 2``, as (vertical, horizontal).

    Raises ValueError if ``dilation * (K - 1)`` is odd, so that no symmetric padding keeps the size.
    """
    height, width = dilation[0] * (kernel_size[0] - 1), dilation[1] * (kernel_size[1] - 1)
    if height % 2 or width % 2:
        raise ValueError(
            f"padding None means 'same', which does not exist for a kernel of {kernel_size[0]}x{kernel_size[1]} with "
            f'dilation {dilation} (dilation * (K - 1) is odd): use an odd kernel size or give padding'
        )
    return height // 2, width // 2


def output_size(size: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> tuple[int, int]:
    """Returns (Ho, Wo), each ``floor((size + 2 p - d (K - 1) - 1) / s) + 1``, for pairs of (vertical, horizontal)."""
    height = (size[0] + 2 * padding[0] - dilation[0] * (kernel_size[0] - 1) - 1) // stride[0] + 1
    width = (size[1] + 2 * padding[1] - dilation[1] * (kernel_size[1] - 1) - 1) // stride[1] + 1
    return height, width


def check_groups(groups: int, channels: int) -> None:
    """Raises ValueError if the number of groups does not divide the number of channels."""
    if not isinstance(groups, _INTEGRAL) or groups < 1 or channels % groups != 0:
        raise ValueError(f'groups must be a divisor of the {channels} channels, but is {groups!r}')


def check_rank(name: str, value: object, rank: int, layout: str) -> None:
    """Raises TypeError if a value is not a tensor, and ValueError if its number of dimensions is not ``rank``."""
    if not isinstance(value, Tensor):
        raise TypeError(f'{name} must be a tensor of shape {layout}, but is of type {type(value).__name__}')
    if value.dim() != rank:
        raise ValueError(f'{name} must have {rank} dimensions {layout}, but its shape is {tuple(value.shape)}')


def check_ranks(**tensors: Tensor | None) -> None:
    """Checks the number of dimensions of each tensor against ``LAYOUTS``. bias may be None."""
    for name, value in tensors.items():
        rank, layout = LAYOUTS[name]
        fits = isinstance(value, Tensor) and value.dim() == rank  # repeats check_rank, since a call takes longer
        if not fits and (value is not None or name != 'bias'):
            check_rank(name, value, rank, layout)


def check_tensors(**tensors: Tensor | None) -> None:
    """Raises TypeError or ValueError if the tensors' numbers of dimensions, dtypes or devices do not fit."""
    check_ranks(**tensors)
    first, dtype, device = '', None, None
    for name, value in tensors.items():
        if value is None:
            continue
        if not first:
            first, dtype, device = name, value.dtype, value.device
            if dtype not in DTYPES:
                raise TypeError(f'{first} must be float16, bfloat16, float32 or float64, but is {dtype}: cast it first')
        elif value.dtype != dtype:
            raise TypeError(f'{name} must have the dtype of {first}, {dtype}, but is {value.dtype}: cast one of them')
        elif value.device != device:
            raise ValueError(
                f'{name} and {first} must be on one device, but are on {value.device} and {device}: move one of them'
            )


def check_shapes(input: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> None:
    """Raises ValueError if involution is not defined for an input and a kernel of these shapes."""
    if min(*stride, *dilation) < 1 or min(padding) < 0:
        raise ValueError(
            'stride and dilation must be at least 1 and padding at least 0, '
            f'but they are {tuple(stride)}, {tuple(dilation)} and {tuple(padding)}'
        )
    n, c, h, w = input
    kernel_n, g, kh, kw, ho, wo = kernel
    if kernel_n != n:
        raise ValueError(f'kernel must have the batch size of input, {n}, but its shape {tuple(kernel)} has {kernel_n}')
    if g < 1 or kh < 1 or kw < 1:
        raise ValueError(f'kernel must have at least one group and one tap, but its shape is {tuple(kernel)}')
    if c % g != 0:
        raise ValueError(
            f'the number of groups of kernel, {g} (its dimension 1), must divide the {c} channels of input: '
            'generate the kernel for a number of groups that divides them'
        )
    height, width = checked_output_size('input', (h, w), (kh, kw), stride, padding, dilation)
    if height != ho or width != wo:
        raise ValueError(
            f'kernel must hold kernels for {height}x{width} output pixels (input {h}x{w}, '
            f'stride {tuple(stride)}, padding {tuple(padding)}, dilation {tuple(dilation)}), '
            f'but its shape {tuple(kernel)} has {ho}x{wo}'
        )


def checked_output_size(name: str, size: Ints, kernel_size: Ints, *geometry: Ints) -> tuple[int, int]:
    """Returns (Ho, Wo) as :func:`output_size` does. Raises ValueError if no window fits in the padded image."""
    height, width = output_size(size, kernel_size, *geometry)
    # With min(), torch.compile would compile a program that is valid only for images that are wider than high.
    if height < 1 or width < 1:
        _, padding, dilation = geometry
        raise ValueError(
            f'{name} of {size[0]}x{size[1]} with padding {tuple(padding)} is smaller than the window of '
            f'{kernel_size[0]}x{kernel_size[1]} with dilation {tuple(dilation)}: increase padding'
        )
    return height, width


def check_grad_output(grad_output: Ints, expected: Ints) -> None:
    """Raises ValueError if grad_output does not have the shape (N, C, Ho, Wo) of the output."""
    if tuple(grad_output) != tuple(expected):
        raise ValueError(f"grad_output must have the output's shape, {tuple(expected)}, but has {tuple(grad_output)}")


def generated_shape(features: Ints, weight: Ints, bias: Ints | None, kernel_size: Ints) -> tuple[int, ...]:
    """Returns the shape (N, G, Kh, Kw, Ho, Wo) of the kernel that a 1x1 convolution generates.

    Raises ValueError if the shapes of features, weight, bias and window do not fit together.
    """
    channels, taps = weight[0], prod(kernel_size)
    if channels % taps != 0 or weight[1] != features[1] or weight[2] != 1 or weight[3] != 1:
        raise ValueError(
            f'weight must have the shape (G * Kh * Kw, R, 1, 1), for kernel_size {tuple(kernel_size)} and the '
            f'R = {features[1]} channels of features, but its shape is {tuple(weight)}'
        )
    if bias is not None and bias[0] != channels:
        raise ValueError(f'bias must have the shape ({channels},), as weight has, but it is {tuple(bias)}')
    return (features[0], channels // taps, *kernel_size, *features[2:])
