"""The time of one involution: which backend computes it, and how it compares with what else there is.

It needs torch alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch

from ..environment import describe_machine
from ..formatting import markdown_list, markdown_table, rounded
from ..ops.arguments import pair
from ..ops.backends import explain, find
from .candidates import COMPILED, GENERATING, Problem, working_backends
from .cases import Case
from .operator import time_candidates
from .timing import Result

LARGEST = 4 << 30  # bytes: 'reference' is left out where its copy of the windows is larger
TITLES = {
    'floor': 'a copy of the bytes',
    'reference': 'reference (unfold)',
    'naive': 'straightforward CUDA kernels',
    'depthwise': 'depthwise convolution',
    'unfused': 'with kernel generation from C / 4 channels, unfused',
    'fused': 'with kernel generation from C / 4 channels, fused',
    'compiled unfold': 'torch.compile of unfold',
    'compiled taps': 'torch.compile of the sum over taps',
}


def make_case(
    channels: int,
    size: tuple[int, int],
    kernel_size: int | Sequence[int] = 7,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int | None = None,
) -> Case:
    """Returns a :class:`.Case`, after its sizes were checked.

    Args:
        channels (int): Channels C.
        size (tuple[int, int]): Height and width of the input in pixels.
        kernel_size (int or tuple[int, int]): An odd size K of the window. Defaults to 7.
        stride (int or tuple[int, int]): Stride. Defaults to 1.
        dilation (int or tuple[int, int]): Dilation. Defaults to 1.
        groups (int, optional): Groups G. Defaults to None, one group for every 16 channels.

    Raises:
        ValueError: A size is not possible.
    """
    kernel_size = pair('kernel_size', kernel_size, 1)
    if kernel_size[0] % 2 == 0 or kernel_size[1] % 2 == 0:
        raise ValueError(f"kernel_size must be odd, since the padding is 'same', but is {kernel_size}")
    if groups is None and channels % 16:
        raise ValueError(f'the number of channels, {channels}, is not a multiple of 16: give the number of groups')
    groups = channels // 16 if groups is None else groups
    if groups < 1 or channels % groups:
        raise ValueError(f'groups must divide the number of channels, {channels}, but is {groups}')
    return Case(channels, size, kernel_size, pair('stride', stride, 1), groups, pair('dilation', dilation, 1))


def benchmark_involution(problem: Problem, budget: float = 5.0, compiled: bool = False) -> str:
    """Times one involution, forward and backward, and describes which kernels compute it.

    Args:
        problem (Problem): The involution and its tensors. Its phase does not matter.
        budget (float): Seconds for all measurements. Defaults to 5.
        compiled (bool): Whether to time ``torch.compile`` of the plain formula, too, which takes minutes. Defaults to
            False.

    Returns:
        str: Markdown: the backends and why each is used or not, the kernels of the backend, and a table of
        milliseconds, GB/s and the percentage of the speed of a copy.
    """
    device = torch.device(problem.device)
    torch.backends.cudnn.benchmark = True  # PyTorch's convolutions are at their best
    chosen, reasons = explain(device)
    others = [name for name in working_backends(device) if name != chosen]
    left_out = {}
    if problem.window_bytes > LARGEST:
        others.remove('reference')
        left_out['reference'] = f'its windows take {problem.window_bytes / 2**30:.1f} GiB'
    candidates = [chosen, 'floor', *others, 'naive', 'depthwise', *GENERATING, *(COMPILED if compiled else ())]
    rows: list[tuple[str, ...]] = []
    moved = []
    for phase in ('forward', 'backward'):
        problem = replace(problem, phase=phase)
        results, errors = time_candidates(candidates, problem, budget / 2, (7, 100))
        left_out |= errors
        rows += _rows(phase, results)
        moved.append(f'{phase}: at least {problem.moved_bytes / 2**20:.1f} MiB to read and write')
    return '\n\n'.join(
        [
            markdown_list(_about(problem)),
            markdown_table(('backend', 'here'), reasons),
            *_describe(chosen, problem),
            *moved,
            markdown_table(('pass', 'what', 'ms', 'IQR', 'GB/s', '% of a copy'), rows, range(2, 6)),
            *(f'{name} was left out: {reason}' for name, reason in left_out.items()),
        ]
    )


def _about(problem: Problem) -> dict[str, str]:
    case, size = problem.case, problem.case.output_size
    layout = 'channels-last' if problem.channels_last else 'contiguous'
    return {
        'involution': f'{case}, {case.groups} groups, batch {problem.batch}, output of {size[0]}x{size[1]} pixels',
        'tensors': f'{problem.labels["dtype"]}, {layout}, on {problem.device}',
        **describe_machine(problem.device),
    }


def _describe(backend: str, problem: Problem) -> list[str]:
    """Returns what a backend reports about its kernels for a problem, if it reports anything."""
    case, device = problem.case, torch.device(problem.device)
    module: Any = find(backend, device)
    if not hasattr(module, 'describe'):
        return []
    memory_format = torch.channels_last if problem.channels_last else torch.contiguous_format

    def make(channels: int, size: Sequence[int]) -> torch.Tensor:
        shape = problem.batch, channels, *size
        return torch.empty(shape, dtype=problem.dtype, device='meta', memory_format=memory_format)

    input, kernel_shape = make(case.channels, case.size), (case.groups, *case.kernel_size)
    kernel = make(prod(kernel_shape), case.output_size).unflatten(1, kernel_shape)
    return module.describe(input, kernel, device, case.stride, case.padding, case.dilation)


def _rows(phase: str, results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Returns the rows of a phase, the fastest first."""
    floor = next((result for result in results if result.candidate == 'floor'), None)
    rows: list[tuple[str, ...]] = []
    for r in sorted(results, key=lambda result: result.median):
        rate = percent = ''
        if r.candidate not in ('depthwise', *GENERATING):  # these move other bytes
            rate = rounded((r.bytes or 0) / r.median / 1e6)
            percent = f'{100 * floor.median / r.median:.0f}' if floor else ''
        title = TITLES.get(r.candidate, f'backend {r.candidate}')
        rows.append((phase, title, rounded(r.median), f'{r.iqr:.2g}', rate, percent))
    return rows
