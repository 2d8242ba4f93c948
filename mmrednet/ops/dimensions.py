"""Involution in one and three dimensions, composed of the operator in two."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

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
        kernel (Tensor): (N, G, K, Lo), of the same device and dtype.
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
    _check_rank('input', input, 3, '(N, C, L)')
    _check_rank('kernel', kernel, 4, '(N, G, K, Lo)')
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
    """Involution in volumes: for each tap along the depth, :func:`involution2d` on all slices that it meets.

    The slices are brought to the front once, so that no tap copies the input.

    Args:
        input (Tensor): (N, C, D, H, W), in float16, bfloat16, float32 or float64.
        kernel (Tensor): (N, G, Kd, Kh, Kw, Do, Ho, Wo), of the same device and dtype.
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
    _check_rank('input', input, 5, '(N, C, D, H, W)')
    _check_rank('kernel', kernel, 8, '(N, G, Kd, Kh, Kw, Do, Ho, Wo)')
    n, channels, depth = input.shape[:3]
    taps, out_depth = kernel.shape[2], kernel.shape[5]
    strides, dilations = _triple('stride', stride, 1), _triple('dilation', dilation, 1)
    if padding is None:
        paddings = tuple(d * (k - 1) // 2 for d, k in zip(dilations, kernel.shape[2:5], strict=True))
        odd = [d * (k - 1) % 2 for d, k in zip(dilations, kernel.shape[2:5], strict=True)]
        if any(odd):
            raise ValueError(
                f"padding None means 'same', which a kernel of {tuple(kernel.shape[2:5])} with dilation {dilations} "
                'does not have (dilation * (K - 1) is odd): use an odd kernel size or give padding'
            )
    else:
        paddings = _triple('padding', padding, 0)
    expected = (depth + 2 * paddings[0] - dilations[0] * (taps - 1) - 1) // strides[0] + 1
    if expected < 1 or expected != out_depth:
        raise ValueError(
            f'kernel must hold kernels for {max(expected, 0)} output slices (input of depth {depth}, '
            f'stride {strides[0]}, padding {paddings[0]}, dilation {dilations[0]}), '
            f'but its shape {tuple(kernel.shape)} has {out_depth}'
        )
    # (D, N, C, H, W), the slices of each phase of the stride together: a tap meets neighbouring slices of one phase.
    slices = input.movedim(2, 0)
    phases = [slices[phase :: strides[0]].contiguous() for phase in range(min(strides[0], depth))]
    kernels = kernel.permute(2, 5, 0, 1, 3, 4, 6, 7)  # (Kd, Do, N, G, Kh, Kw, Ho, Wo)
    geometry = strides[1:], paddings[1:], dilations[1:]
    total: Tensor | None = None
    for tap in range(taps):
        offset = tap * dilations[0] - paddings[0]
        start = max(0, -(offset // strides[0]))
        stop = min(out_depth, (depth - 1 - offset) // strides[0] + 1)
        if start >= stop:
            continue
        first, phase = divmod(start * strides[0] + offset, strides[0])
        met = phases[phase][first : first + stop - start].flatten(0, 1)
        part = involution2d(met, kernels[tap, start:stop].flatten(0, 1), *geometry, backend=backend)
        dtype = part.dtype  # autocast may have cast
        part = part.unflatten(0, (stop - start, n)).to(torch.promote_types(part.dtype, torch.float32))
        part = F.pad(part, (0,) * 8 + (start, out_depth - stop))
        total = part if total is None else total + part
    if total is None:  # a large stride can pass by a small input
        return input.new_zeros(n, channels, *kernel.shape[5:])
    return total.movedim(0, 2).to(dtype)


def _triple(name: str, value: int | Sequence[int], least: int) -> tuple[int, int, int]:
    values = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(values) != 3 or not all(isinstance(v, int) and v >= least for v in values):
        raise ValueError(f'{name} must be an int or three ints of at least {least}, but is {value!r}')
    return values


def _check_rank(name: str, value: Tensor, rank: int, layout: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f'{name} must be a tensor of shape {layout}, but is of type {type(value).__name__}')
    if value.dim() != rank:
        raise ValueError(f'{name} must have {rank} dimensions {layout}, but its shape is {tuple(value.shape)}')
