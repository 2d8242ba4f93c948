"""Compares an export with its network before the file is kept."""

import copy
import timeit
from functools import partial
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import one_line
from ..files import replacing
from .formats import FORMATS, Run, check_format, export
from .model import ExportableModel, example, trace_size

# The largest difference from float64 that counts as rounding, as a share of the range of an output.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2}


class Comparison(NamedTuple):
    """An export beside PyTorch, for images of the shape (N, C, H, W)."""

    shape: tuple[int, ...]
    # The largest difference from the network in float64, of the export and of PyTorch in the network's dtype, as a
    # share of the range of an output. It is infinite if a value is not finite or an output has another shape.
    difference: float
    own: float
    # Seconds for a batch, the best of three.
    pytorch: float
    exported: float


def export_checked(
    network: ExportableModel, name: str, path: Path, size: tuple[int, int] = (224, 224)
) -> list[Comparison]:
    """Writes a network as :func:`export` does, loads the file, and compares it with the network.

    The file is kept only if it is right. It and the files beside it that the format needs are replaced together or not
    at all. The errors are those of :func:`check_format`, :func:`export` and :func:`check`.
    """
    check_format(name, path)
    with replacing(path) as part:
        export(network, name, part, size)
        return check(network, FORMATS[name].load(part), size)


def check(network: ExportableModel, run: Run, size: tuple[int, int]) -> list[Comparison]:
    """Returns what :func:`compare` returns. Raises ValueError if an export differs by more than rounding."""
    tolerance, found = TOLERANCE[next(network.parameters()).dtype], compare(network, run, size)
    for comparison in found:
        # If all values of an output are nearly equal, rounding is a large share of their range, also in PyTorch.
        allowed = max(tolerance, 4 * comparison.own if isfinite(comparison.own) else 0)
        if comparison.difference > allowed:
            raise ValueError(
                f'the export is wrong for images of {"x".join(map(str, comparison.shape))}: it differs from PyTorch in '
                f'float64 by {comparison.difference:.1e} of the range of an output, more than {allowed:g}; nothing was '
                'written'
            )
    return found


def compare(network: ExportableModel, run: Run, size: tuple[int, int]) -> list[Comparison]:
    """Compares an export with the network in float64, and times it beside the network.

    Args:
        network (ExportableModel): The network.
        run (Run): The export: a function from images to outputs.
        size (tuple[int, int]): Height and width. The export is compared at three sizes: this one, that of the trace,
            and another height and width.

    Raises:
        ValueError: The export raises an error.
    """
    height, width = size
    truth, found = copy.deepcopy(network).double(), []
    for at in ((1, height, width), trace_size(size), (1, height * 3 // 4 | 1, width * 5 // 4 | 1)):
        images = example(network, at)
        with torch.no_grad():
            expected = truth(images.double())
            try:
                exported = run(images)
            except Exception as error:  # of any runtime
                shape = 'x'.join(map(str, images.shape))
                raise ValueError(f'the export does not run for images of {shape}: {one_line(error)}') from error
            difference, own = (
                max(_difference(*pair) for pair in zip(outputs, expected, strict=True))
                for outputs in (exported, network(images))
            )
            times = (min(timeit.repeat(partial(f, images), number=1, repeat=3)) for f in (network, run))
            found.append(Comparison(tuple(images.shape), difference, own, *times))
    return found


def _difference(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape or not (actual.isfinite().all() and expected.isfinite().all()):
        return float('inf')
    spread = expected.max() - expected.min()
    return float((actual - expected).abs().max() / spread.clamp(min=torch.finfo(torch.float32).tiny))
