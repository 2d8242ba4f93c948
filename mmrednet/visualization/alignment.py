"""Finds which part of an image each cell of a network's map comes from."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

import numpy as np

# Values of the ramps. Pipelines seldom pad with white, and the ramps themselves never reach it.
_DARK, _LIGHT, _WHITE = 16, 240, 255
_ERROR = 3  # how far a resized ramp may be off a straight line, in grey values


@dataclass(frozen=True)
class ImageAlignment:
    """How a network's input lies over the image that it was made from.

    Pairs are vertical, horizontal. Coordinates count from the centre of the first pixel, as in ``matplotlib.imshow``.

    Args:
        padded (tuple[int, int]): Height and width of the network's input with its padding, in pixels.
        box (tuple[tuple[float, float], tuple[float, float]]): The part of the image that the input shows:
            (top, bottom), (left, right), in pixels of the image.
        scale (tuple[float, float]): Pixels of the image per pixel of the input. Defaults to (1, 1).
        offset (tuple[float, float]): Where the input's first pixel lies in the image. Defaults to (0, 0).
    """

    padded: tuple[int, int]
    box: tuple[tuple[float, float], tuple[float, float]]
    scale: tuple[float, float] = (1, 1)
    offset: tuple[float, float] = (0, 0)

    def extent(self, size: Sequence[int]) -> tuple[float, float, float, float]:
        """Returns where a map of this height and width lies in the image: left, right, bottom, top.

        The map starts at the upper left corner of the input. Its last cells may reach beyond the input's border.
        """
        (top, bottom), (left, right) = (
            (offset - scale / 2, offset + scale * (cell_size(padded, cells) * cells - 0.5))
            for padded, cells, scale, offset in zip(self.padded, size, self.scale, self.offset, strict=True)
        )
        return left, right, bottom, top

    def cell(self, x: float, y: float, size: Sequence[int]) -> tuple[int, int]:
        """Returns the row and column of a map of this height and width at a point of the image.

        Raises:
            ValueError: The point is outside the part of the image that the network's input shows.
        """
        if not all(low <= at <= high for at, (low, high) in zip((y, x), self.box, strict=True)):
            (top, bottom), (left, right) = self.box
            raise ValueError(
                f'{x:g},{y:g} is a place outside the input of the network: give x from {left + 0.5:.0f} to '
                f'{right - 0.5:.0f} and y from {top + 0.5:.0f} to {bottom - 0.5:.0f}'
            )
        row, column = (
            min(int(((at - offset) / scale + 0.5) / cell_size(padded, cells)), cells - 1)
            for at, padded, cells, scale, offset in zip((y, x), self.padded, size, self.scale, self.offset, strict=True)
        )
        return row, column


def cell_size(padded: int, cells: int) -> float:
    """Returns the size of a map's cell along one side, in pixels of the network's input.

    Networks halve a size and round up. Where that explains the number of cells, the last cell may be cut off.
    """
    size = 2 ** ceil(log2(padded / cells))
    return size if ceil(padded / size) == cells else padded / cells


def coordinate_ramp(height: int, width: int) -> np.ndarray:
    """Returns an image (height, width, 3) whose values encode the position of each pixel, for :func:`find_alignment`.

    The first channel grows from left to right, the second from top to bottom, and the third is white.
    """
    image = np.full((height, width, 3), _WHITE, np.uint8)
    image[..., 0] = np.linspace(_DARK, _LIGHT, width).round()
    image[..., 1] = np.linspace(_DARK, _LIGHT, height).round()[:, None]
    return image


def find_alignment(probe: np.ndarray, size: Sequence[int], padded: tuple[int, int]) -> ImageAlignment:
    """Finds how a pipeline resizes, crops, pads and flips, from what it makes of a :func:`coordinate_ramp`.

    Args:
        probe (np.ndarray): The ramp (H, W, 3) after the pipeline.
        size (tuple[int, int]): Height and width of the image.
        padded (tuple[int, int]): Height and width of the network's input, which is padded below and to the right.

    Raises:
        ValueError: The pipeline rotates or distorts images or changes their values, or nothing of the image is left.
    """
    probe = probe.astype(float)
    if probe[..., 0].mean() > probe[..., 2].mean():  # the pipeline reversed the channels
        probe = probe[..., ::-1]
    shown = (probe[..., 2] > _LIGHT + 5) & (probe[..., :2] < _WHITE - 5).all(-1)
    found = []
    for axis, (channel, length) in enumerate(((1, size[0]), (0, size[1]))):
        # One row for each position along the axis.
        values = np.ma.array(probe[..., channel], mask=~shown).swapaxes(0, axis)
        places = np.flatnonzero(values.count(1))
        inner = places[len(places) // 8 : -(len(places) // 8) or None]  # resizing repeats pixels near a border
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
            'maps cannot be laid over the image, since its pipeline rotates or distorts it, or changes its values: '
            'give a config whose test pipeline only resizes, crops, pads and flips, and leave normalization to its '
            'data_preprocessor'
        )
    scales, offsets, box = zip(*found, strict=True)
    return ImageAlignment(padded, box, scales, offsets)
