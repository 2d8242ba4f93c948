"""The pixels outside an image, as the members of the family treat them: zeros, masked, or reflected."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import output_size

BORDERS = ('zeros', 'mask', 'reflect')


def check_border(border: str) -> None:
    """Raises ValueError where ``border`` is not in ``BORDERS``."""
    if border not in BORDERS:
        raise ValueError(f'border must be one of {BORDERS}, but is {border!r}')


def reflect(x: Tensor, padding: Sequence[int]) -> Tensor:
    """Pads images (N, C, H, W) with their reflection; the pixels at the border are not repeated.

    Args:
        x (Tensor): The images.
        padding (Sequence[int]): Vertical and horizontal padding on both sides in pixels.

    Raises:
        ValueError: An image is not larger than its padding.
    """
    for name, size, pad in zip(('high', 'wide'), x.shape[2:], padding, strict=True):
        if size <= pad:
            raise ValueError(
                f"border='reflect' with a padding of {pad} pixels needs a map that is at least {pad + 1} pixels "
                f'{name}, but it is {size}: give a larger image, a smaller kernel_size, or another border'
            )
    return F.pad(x, (padding[1], padding[1], padding[0], padding[0]), mode='reflect')


def inside(
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    device: torch.device | str | None = None,
) -> Tensor:
    """Returns, for each tap of each window, whether it is inside the image: booleans (Kh, Kw, Ho, Wo).

    Args:
        size (Sequence[int]): Height and width of the image.
        kernel_size (Sequence[int]): Height and width of the window.
        stride (Sequence[int]): Vertical and horizontal stride.
        padding (Sequence[int]): Vertical and horizontal padding.
        dilation (Sequence[int]): Vertical and horizontal dilation.
        device (torch.device, optional): Device of the result. Defaults to None, torch's default.
    """
    outputs = output_size(size, kernel_size, stride, padding, dilation)
    rows, columns = (
        _inside_axis(size[i], kernel_size[i], stride[i], padding[i], dilation[i], outputs[i], device) for i in (0, 1)
    )
    return rows[:, None, :, None] & columns[None, :, None, :]


def _inside_axis(size: int, taps: int, stride: int, padding: int, dilation: int, outputs: int, device) -> Tensor:
    """Returns the same along one axis, (K, Lo)."""
    first = torch.arange(outputs, device=device) * stride - padding
    at = first + torch.arange(taps, device=device)[:, None] * dilation
    return (at >= 0) & (at < size)
