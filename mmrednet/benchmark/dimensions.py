"""Involution in one and three dimensions beside plain ``unfold``. It needs torch alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import involution1d, involution3d
from .timing import Labels, Result, Setting, time_results


@dataclass(frozen=True)
class Signal(Setting):
    """An involution of a signal with one or three axes, with stride 1 and 'same' padding."""

    channels: int
    size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    groups: int = 4

    @property
    def labels(self) -> Labels:
        """The labels of a :class:`.Result` of this involution."""
        size, window = ('x'.join(map(str, numbers)) for numbers in (self.size, self.kernel_size))
        return {'shape': f'{self.channels}x{size}, K = {window}', **super().labels}

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Returns a random input (N, C, *size) and random kernels (N, G, *K, *size)."""
        kernel = self.randn(self.batch, self.groups, *self.kernel_size, *self.size)
        return self.randn(self.batch, self.channels, *self.size), kernel


def unfold(input: Tensor, kernel: Tensor) -> Tensor:
    """Computes :func:`.involution1d` or :func:`.involution3d` with the windows of the input and ``einsum``."""
    axes = input.dim() - 2
    kernel_size = kernel.shape[2 : 2 + axes]
    windows = F.pad(input, [k // 2 for k in reversed(kernel_size) for _ in range(2)])
    for axis, k in enumerate(kernel_size):
        windows = windows.unfold(2 + axis, k, 1)
    equation = 'ngcxu,ngux->ngcx' if axes == 1 else 'ngczyxuvw,nguvwzyx->ngczyx'
    return torch.einsum(equation, windows.unflatten(1, (kernel.shape[1], -1)), kernel).flatten(1, 2)


def signals(batches: Sequence[int], dtypes: Sequence[torch.dtype], device: str | torch.device) -> list[Signal]:
    """Returns the involutions that are measured: two of sequences and two of volumes."""
    shapes = ((4096,), (7,)), ((4096,), (31,)), ((8, 28, 28), (3, 3, 3)), ((8, 28, 28), (3, 7, 7))
    return [
        Signal(64, size, window, batch=batch, dtype=dtype, device=device, phase=phase)
        for dtype in dtypes
        for batch in batches
        for size, window in shapes
        for phase in ('forward', 'training')
    ]


def benchmark_dimensions(problems: Sequence[Signal], budget: float) -> Iterator[Result]:
    """Times the operator and ``unfold`` in turns, ``budget`` seconds for each problem, and yields milliseconds."""
    for problem in problems:
        ours = involution1d if len(problem.size) == 1 else involution3d
        steps = {
            name: problem.step(function, problem.inputs(), (problem.batch, problem.channels, *problem.size))
            for name, function in (('involution', ours), ('unfold', unfold))
        }
        yield from time_results(steps, problem.labels, problem.device, budget)
