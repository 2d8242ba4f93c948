"""A report on one involution: the backend that computes it, and the times of all candidates. It needs torch alone."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch

from ..environment import describe_machine
from ..formatting import markdown_list, markdown_table, rounded
from ..ops.arguments import check_groups, pair
from ..ops.backends import explain
from .candidates import COMPILED, GENERATING, Problem, working_backends
from .cases import Case
from .operator import time_candidates
from .timing import Result

LARGEST = 4 << 30  # bytes: 'reference' is left out where its copy of the windows is larger


def make_case(
    channels: int,
    size: tuple[int, int],
    kernel_size: int | Sequence[int] = 7,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int | None = None,
) -> Case:
    """Returns a :class:`.Case`, by default with one group for every 16 channels, or raises ValueError."""
    kernel_size = pair('kernel_size', kernel_size, 1)
    if kernel_size[0] % 2 == 0 or kernel_size[1] % 2 == 0:
        raise ValueError(f"kernel_size must be odd, since the padding is 'same', but is {kernel_size}")
    if groups is None and channels % 16:
        raise ValueError(f'the number of channels, {channels}, is not a multiple of 16: give the number of groups')
    groups = channels // 16 if groups is None else groups
    check_groups(groups, channels)
    return Case(channels, size, kernel_size, pair('stride', stride, 1), groups, pair('dilation', dilation, 1))


def benchmark_involution(problem: Problem, budget: float, compiled: bool = False) -> str:
    """Times one involution, forward and backward, and explains which backend computes it.

    The phase of the problem does not matter, and ``budget`` is in seconds for all measurements. Returns Markdown: the
    backends and why each is used or not, and a table of times.
    """
    device, case = torch.device(problem.device), problem.case
    torch.backends.cudnn.benchmark = True  # cuDNN chooses its fastest kernels
    chosen, reasons = explain(device)
    others = [name for name in working_backends(device) if name != chosen]
    left_out = {}
    windows = prod(problem.output_shape) * prod(case.kernel_size) * max(4, problem.dtype.itemsize)
    if windows > LARGEST:
        others.remove('reference')
        left_out['reference'] = f'its windows take {windows / 2**30:.1f} GiB'
    candidates = [chosen, 'floor', *others, 'naive', 'depthwise', *GENERATING, *(COMPILED if compiled else ())]
    rows: list[tuple[str, ...]] = []
    moved = []
    for phase in ('forward', 'backward'):
        problem = replace(problem, phase=phase)
        results, errors = time_candidates(candidates, problem, budget / 2)
        left_out |= errors
        rows += _rows(phase, results)
        moved.append(f'{phase}: at least {problem.moved_bytes / 2**20:.1f} MiB to read and write')
    output = 'x'.join(map(str, case.output_size))
    about = {
        'involution': f'{case}, {case.groups} groups, batch {problem.batch}, output of {output} pixels',
        'tensors': f'{problem.labels["dtype"]}, {problem.labels["layout"]}, on {device}',
        **describe_machine(device),
    }
    return '\n\n'.join(
        [
            markdown_list(about),
            markdown_table(('backend', 'on this machine'), reasons),
            *moved,
            markdown_table(('phase', 'candidate', 'ms', 'IQR', 'GB/s', '% of a copy'), rows, range(2, 6)),
            *(f'{name} was left out: {reason}' for name, reason in left_out.items()),
        ]
    )


def _rows(phase: str, results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Returns the rows of a phase, the fastest first."""
    medians = {result.candidate: result.median for result in results}
    rows: list[tuple[str, ...]] = []
    for r in sorted(results, key=lambda result: result.median):
        rate = percent = ''
        if r.candidate not in ('depthwise', *GENERATING):  # these move a different number of bytes
            rate = rounded((r.bytes or 0) / r.median / 1e6)
            percent = f'{100 * medians["floor"] / r.median:.0f}' if 'floor' in medians else ''
        rows.append((phase, r.candidate, rounded(r.median), f'{r.iqr:.2g}', rate, percent))
    return rows
