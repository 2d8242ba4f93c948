"""Involution in one and three dimensions, computed with the two-dimensional operator."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import check_rank, ints, same_padding
from .backends import check_backend
from .involution import involution2d


def involution1d(
    input: Tensor,
    kernel: Tensor,
    stride: int = 1,
    padding: int | None = None,
    dilation: int = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """Involution along one axis: :func:`involution2d` on images that are one pixel high.

    Args:
        input (Tensor): (N, C, L), in float16, bfloat16, float32 or float64.
        kernel (Tensor): (N, G, K, Lo), with the device and dtype of ``input``.
        stride (int): Stride. Defaults to 1.
        padding (int, optional): Zero padding on both sides. Defaults to None, 'same'.
        dilation (int): Distance between the window's taps. Defaults to 1.
        backend (str, optional): As in :func:`involution2d`. Defaults to None.

    Returns:
        Tensor: (N, C, Lo) with ``Lo = floor((L + 2 p - d (K - 1) - 1) / s) + 1``.

    Raises:
        TypeError: An argument is not a tensor, or a dtype does not fit.
        ValueError: Shapes, groups, devices, stride, padding, dilation or backend do not fit.
    """
    check_rank('input', input, 3, '(N, C, L)')
    check_rank('kernel', kernel, 4, '(N, G, K, Lo)')
    out = involution2d(
        input.unsqueeze(2),
        kernel[:, :, None, :, None],
        (1, stride),
        None if padding is None else (0, padding),
        (1, dilation),
        backend=backend,
    )
    return out.squeeze(2)


def involution3d(
    input: Tensor,
    kernel: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | None = None,
    dilation: int | Sequence[int] = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """Involution in volumes: calls :func:`involution2d` for each tap along the depth, and adds the results.

    The slices are copied once. Their order in the copy lets each tap read consecutive slices.

    Args:
        input (Tensor): (N, C, D, H, W), in float16, bfloat16, float32 or float64.
        kernel (Tensor): (N, G, Kd, Kh, Kw, Do, Ho, Wo), with the device and dtype of ``input``.
        stride (int or three ints): Stride along depth, height and width. Defaults to 1.
        padding (int or three ints, optional): Zero padding on both sides. Defaults to None, 'same'.
        dilation (int or three ints): Distance between the window's taps. Defaults to 1.
        backend (str, optional): As in :func:`involution2d`. Defaults to None.

    Returns:
        Tensor: (N, C, Do, Ho, Wo).

    Raises:
        TypeError: An argument is not a tensor, or a dtype does not fit.
        ValueError: Shapes, groups, devices, stride, padding, dilation or backend do not fit.
    """
    check_backend(backend)
    check_rank('input', input, 5, '(N, C, D, H, W)')
    check_rank('kernel', kernel, 8, '(N, G, Kd, Kh, Kw, Do, Ho, Wo)')
    n, channels, depth = input.shape[:3]
    kernel_size, out_depth = kernel.shape[2:5], kernel.shape[5]
    strides, dilations = ints('stride', stride, 1, 3), ints('dilation', dilation, 1, 3)
    paddings = _same_padding(kernel_size, dilations) if padding is None else ints('padding', padding, 0, 3)
    _check_depth(depth, kernel.shape, strides[0], paddings[0], dilations[0])
    # (D, N, C, H, W). With stride s, a tap reads every s-th slice. These slices are stored one after the other.
    slices = input.movedim(2, 0)
    phases = [slices[phase :: strides[0]].contiguous() for phase in range(min(strides[0], depth))]
    kernels = kernel.permute(2, 5, 0, 1, 3, 4, 6, 7)  # (Kd, Do, N, G, Kh, Kw, Ho, Wo)
    geometry = strides[1:], paddings[1:], dilations[1:]
    total: Tensor | None = None
    for tap in range(kernel_size[0]):
        offset = tap * dilations[0] - paddings[0]
        start = max(0, -(offset // strides[0]))
        stop = min(out_depth, (depth - 1 - offset) // strides[0] + 1)
        if start >= stop:
            continue
        first, phase = divmod(start * strides[0] + offset, strides[0])
        read = phases[phase][first : first + stop - start].flatten(0, 1)
        part = involution2d(read, kernels[tap, start:stop].flatten(0, 1), *geometry, backend=backend)
        dtype = part.dtype  # autocast may have changed it
        part = part.unflatten(0, (stop - start, n)).to(torch.promote_types(part.dtype, torch.float32))
        part = F.pad(part, (0,) * 8 + (start, out_depth - stop))
        total = part if total is None else total + part
    if total is None:  # with a large dilation, all taps may be outside a small input
        # A call without slices checks the arguments, and gives the result gradients, which are zero.
        part = involution2d(slices[:0].flatten(0, 1), kernels[0, :0].flatten(0, 1), *geometry, backend=backend)
        return part.sum() + part.new_zeros(n, channels, *kernel.shape[5:])
    return total.movedim(0, 2).to(dtype)


def _same_padding(kernel_size: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    return same_padding(kernel_size[:2], dilation[:2])[0], *same_padding(kernel_size[1:], dilation[1:])


def _check_depth(depth: int, kernel: Sequence[int], stride: int, padding: int, dilation: int) -> None:
    expected = (depth + 2 * padding - dilation * (kernel[2] - 1) - 1) // stride + 1
    if expected < 1 or expected != kernel[5]:
        raise ValueError(
            f'kernel must hold kernels for {max(expected, 0)} output slices (input of depth {depth}, stride {stride}, '
            f'padding {padding}, dilation {dilation}), but its shape {tuple(kernel)} has {kernel[5]}'
        )
