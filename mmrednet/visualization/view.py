"""Where in an image the pixels of a network's input, and the cells of its maps, come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

import numpy as np

# Grey values of a ramp over an image: what a pipeline pads with is seldom one of them, and never one beside white.
_DARK, _LIGHT, _WHITE = 16, 240, 255
_ERROR = 3  # grey values that a resized ramp may be off a straight line


@dataclass(frozen=True)
class View:
    """How a network's input and the image that it was made from lie over each other.

    All pairs are vertical and horizontal, and pixels are counted from the middle of the first one, as
    ``matplotlib.imshow`` does.

    Args:
        padded (tuple[int, int]): Height and width of the network's input, with its padding, in pixels.
        box (tuple[tuple[float, float], tuple[float, float]]): From where to where in the image the input shows it.
        scale (tuple[float, float]): The image's pixels for one of the input. Defaults to (1, 1).
        offset (tuple[float, float]): Where in the image the input's first pixel is. Defaults to (0, 0).
    """

    padded: tuple[int, int]
    box: tuple[tuple[float, float], tuple[float, float]]
    scale: tuple[float, float] = (1, 1)
    offset: tuple[float, float] = (0, 0)

    def extent(self, size: Sequence[int]) -> tuple[float, float, float, float]:
        """Returns where in the image a map of this height and width lies: left, right, bottom and top.

        Its cells begin in the input's upper left corner, and the last ones may reach beyond its border.
        """
        (top, bottom), (left, right) = (
            (offset - scale / 2, offset + scale * (cell_size(padded, cells) * cells - 0.5))
            for padded, cells, scale, offset in zip(self.padded, size, self.scale, self.offset, strict=True)
        )
        return left, right, bottom, top

    def cell(self, x: float, y: float, size: Sequence[int]) -> tuple[int, int]:
        """Returns row and column of the cell, in a map of this height and width, at a place in the image.

        Raises:
            ValueError: The network does not see that place.
        """
        if not all(low <= at <= high for at, (low, high) in zip((y, x), self.box, strict=True)):
            (top, bottom), (left, right) = self.box
            raise ValueError(
                f'{x:g},{y:g} is a place that the network does not see: give x from {left + 0.5:.0f} to '
                f'{right - 0.5:.0f} and y from {top + 0.5:.0f} to {bottom - 0.5:.0f}'
            )
        row, column = (
            min(int(((at - offset) / scale + 0.5) / cell_size(padded, cells)), cells - 1)
            for at, padded, cells, scale, offset in zip((y, x), self.padded, size, self.scale, self.offset, strict=True)
        )
        return row, column


def cell_size(padded: int, cells: int) -> float:
    """Returns the pixels of the input that a cell of a map stands for, along one side.

    Networks halve sizes and round up: where that explains the number of cells, the last one may be cut off.
    """
    size = 2 ** ceil(log2(padded / cells))
    return size if ceil(padded / size) == cells else padded / cells


def ramps(height: int, width: int) -> np.ndarray:
    """Returns an image (height, width, 3) whose grey values say where each pixel is: :func:`find_view` reads them."""
    image = np.full((height, width, 3), _WHITE, np.uint8)
    image[..., 0] = np.linspace(_DARK, _LIGHT, width).round()
    image[..., 1] = np.linspace(_DARK, _LIGHT, height).round()[:, None]
    return image


def find_view(probe: np.ndarray, size: Sequence[int], padded: tuple[int, int]) -> View:
    """Finds what a pipeline does to the places in an image, from what it makes of the image's :func:`ramps`.

    So resizing, cropping, padding and flipping need not be known one by one.

    Args:
        probe (np.ndarray): The ramps (H, W, 3) after the pipeline.
        size (tuple[int, int]): Height and width of the image.
        padded (tuple[int, int]): Height and width of the network's input, which is padded below and to the right.

    Raises:
        ValueError: The pipeline does not keep rows rows and columns columns, or leaves nothing of the image.
    """
    probe = probe.astype(float)
    if probe[..., 0].mean() > probe[..., 2].mean():  # its channels were reversed
        probe = probe[..., ::-1]
    shown = (probe[..., 2] > _LIGHT + 5) & (probe[..., :2] < _WHITE - 5).all(-1)
    found = []
    for axis, (channel, length) in enumerate(((1, size[0]), (0, size[1]))):
        # A row for each place along the axis.
        values = np.ma.array(probe[..., channel], mask=~shown).swapaxes(0, axis)
        places = np.flatnonzero(values.count(1))
        inner = places[len(places) // 8 : -(len(places) // 8) or None]  # near a border, resizing repeats pixels
        if len(inner) < 2:
            break
        slope, first = np.polyfit(inner, values[inner].mean(1).data, 1)
        if abs(values[inner] - (slope * inner + first)[:, None]).max() > _ERROR:
            break
        pixels = (length - 1) / (_LIGHT - _DARK)
        scale, offset = slope * pixels, (first - _DARK) * pixels
        ends = sorted(scale * (place + side) + offset for place, side in ((places[0], -0.5), (places[-1], 0.5)))
        found.append((scale, offset, (max(ends[0], -0.5), min(ends[1], length - 0.5))))
    if len(found) < 2:
        raise ValueError(
            'maps cannot be laid over the image, since its pipeline turns or distorts it, or changes its colours: give '
            'a config whose test pipeline resizes, crops, pads and flips only, and leave the rest to its '
            'data_preprocessor'
        )
    scales, offsets, box = zip(*found, strict=True)
    return View(padded, box, scales, offsets)
