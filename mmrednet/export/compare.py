"""Every export is run beside its network before the file is kept."""

import copy
import time
from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import one_line
from ..files import replacing
from .formats import FORMATS, Run, check_format, export, without_warnings
from .model import ExportableModel, example, trace_size

# The largest difference from float64 that counts as rounding, as a share of the range of an output.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2}


class Comparison(NamedTuple):
    """An export beside PyTorch, for images of one size.

    Args:
        shape (tuple[int, ...]): The shape of the images, (N, C, H, W).
        difference (float): The export's largest difference from the network in float64, as a share of the range of an
            output. It is infinite where a value is not finite or an output has another shape.
        own (float): The same for PyTorch in the network's dtype.
        pytorch (float): Seconds for a batch in PyTorch, the best of three.
        exported (float): Seconds for a batch in the runtime of the export, the best of three.
    """

    shape: tuple[int, ...]
    difference: float
    own: float
    pytorch: float
    exported: float


def export_checked(
    network: ExportableModel, name: str, path: Path, size: tuple[int, int] = (224, 224)
) -> list[Comparison]:
    """Writes a network as a file, loads the file, and compares it with the network. Only a right file is kept.

    Args:
        network (ExportableModel): The network, in the dtype that the file is to have.
        name (str): The format, one of ``FORMATS``.
        path (Path): The file. It and the files beside it that the format needs are replaced, all or none.
        size (tuple[int, int]): Height and width around which the export is checked. Defaults to (224, 224).

    Returns:
        list[Comparison]: One for each size that was checked.

    Raises:
        ValueError: The path does not fit the format, the network cannot be exported, or the export is wrong.
        ImportError: A package that the format needs is missing or too old.
        RuntimeError: The format needs a C++ compiler, and there is none.
    """
    check_format(name, path)
    with replacing(path) as part:
        export(network, name, part, size)
        return check(network, FORMATS[name].load(part), size)


def check(network: ExportableModel, run: Run, size: tuple[int, int]) -> list[Comparison]:
    """Returns what :func:`compare` yields.

    Raises:
        ValueError: The export does not run at every size, or it differs from the network by more than rounding.
    """
    tolerance, found = TOLERANCE[next(network.parameters()).dtype], []
    for comparison in compare(network, run, size):
        found.append(comparison)
        # Where all values of an output are nearly equal, rounding is a large share of their range, in PyTorch as well.
        allowed = max(tolerance, 4 * comparison.own if isfinite(comparison.own) else 0)
        if not comparison.difference <= allowed:
            raise ValueError(
                f'the export is wrong for images of {"x".join(map(str, comparison.shape))}: it differs from PyTorch in '
                f'float64 by {comparison.difference:.1e} of the range of an output, more than {allowed:g}; nothing was '
                'written'
            )
    return found


def compare(network: ExportableModel, run: Run, size: tuple[int, int]) -> Iterator[Comparison]:
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
    sizes = [(1, height, width), trace_size(size), (1, height * 3 // 4 | 1, width * 5 // 4 | 1)]
    truth = copy.deepcopy(network).double()
    for at in sizes:
        images = example(network, at)
        with torch.no_grad(), without_warnings():
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
            yield Comparison(tuple(images.shape), difference, own, _seconds(network, images), _seconds(run, images))


def _difference(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape or not (actual.isfinite().all() and expected.isfinite().all()):
        return float('inf')
    spread = expected.max() - expected.min()
    return float((actual - expected).abs().max() / spread.clamp(min=torch.finfo(torch.float32).tiny))


def _seconds(run: Callable[[Tensor], Any], images: Tensor) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - start)
    return min(times)
