"""The borders of local attention: the pixels outside an image are zeros, masked, or reflected."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import Ints, output_size

BORDERS = ('zeros', 'mask', 'reflect')


def check_border(border: str) -> None:
    """Raises ValueError if ``border`` is not in ``BORDERS``."""
    if border not in BORDERS:
        raise ValueError(f'border must be one of {BORDERS}, but is {border!r}')


def reflect(x: Tensor, padding: Ints) -> Tensor:
    """Pads images (N, C, H, W) with their reflection, in which the outermost pixels are not repeated.

    ``padding`` is the vertical and the horizontal padding on both sides in pixels. Raises ValueError if an image is
    not larger than its padding.
    """
    for name, size, pad in zip(('high', 'wide'), x.shape[2:], padding, strict=True):
        if size <= pad:
            raise ValueError(
                f"border='reflect' with a padding of {pad} pixels needs an input that is at least {pad + 1} pixels "
                f'{name}, but it is {size}: use a larger image, a smaller kernel_size, or another border'
            )
    return F.pad(x, (padding[1], padding[1], padding[0], padding[0]), mode='reflect')


def inside(
    size: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, device: torch.device | None = None
) -> Tensor:
    """Returns booleans (Kh, Kw, Ho, Wo): whether each tap of each window is inside an image of this size."""
    outputs = output_size(size, kernel_size, stride, padding, dilation)
    masks = []
    for axis in (0, 1):
        first = torch.arange(outputs[axis], device=device) * stride[axis] - padding[axis]
        at = first + torch.arange(kernel_size[axis], device=device)[:, None] * dilation[axis]
        masks.append((at >= 0) & (at < size[axis]))
    return masks[0][:, None, :, None] & masks[1][None, :, None, :]
