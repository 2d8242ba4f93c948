"""The time of the operator, beside what it has to be compared with. It needs torch alone."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from . import naive_cuda
from .candidates import COMPILED, GENERATING, Problem, operator_step, working_backends
from .cases import Case
from .timing import Result, time_results


def benchmark_operator(
    cases: Sequence[Case],
    batches: Sequence[int] = (1,),
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    device: str | torch.device = 'cpu',
    channels_last: bool = False,
    budget: float = 20.0,
    compiled: bool = False,
) -> Iterator[Result]:
    """Times the backends of the operator, the depthwise convolution and a copy of the same bytes, in turns.

    The forward pass is also timed with the generation of the kernels, unfused and fused. The straightforward CUDA
    kernels are timed on contiguous tensors in float32 and float64, which they are written for.

    Args:
        cases (Sequence[Case]): The involutions.
        batches (Sequence[int]): Batch sizes. Defaults to (1,).
        dtypes (Sequence[torch.dtype]): Dtypes of the tensors. Defaults to (torch.float32,).
        device (str or torch.device): The device of the tensors. Defaults to 'cpu'.
        channels_last (bool): Whether the tensors are channels-last. Defaults to False.
        budget (float): Seconds for each case, as in :func:`time_in_turns`. Defaults to 20.
        compiled (bool): Whether to time ``torch.compile`` of the plain formula, too. The faster of its two forms is
            reported as 'compiled'. Compiling takes a minute or more for each case. Defaults to False.

    Yields:
        Result: Milliseconds of a candidate in a case.
    """
    names = ['floor', 'depthwise', 'naive', *working_backends(device), *GENERATING, *(COMPILED if compiled else ())]
    problems = [
        Problem(case, batch, dtype, device, channels_last, phase)
        for dtype in dtypes
        for phase in ('forward', 'backward')
        for batch in batches
        for case in cases
    ]
    for problem in problems:
        if compiled:
            torch.compiler.reset()  # dynamo compiles one function for at most eight shapes
        steps = {name: operator_step(name, problem) for name in names if applies(name, problem)}
        results = list(time_results(steps, problem.labels, device, budget, bytes=problem.moved_bytes))
        yield from (result for result in results if result.candidate not in COMPILED)
        if compiled:
            best = min((result for result in results if result.candidate in COMPILED), key=lambda r: r.median)
            yield replace(best, candidate='compiled')


def time_candidates(
    candidates: Sequence[str], problem: Problem, budget: float, rounds: tuple[int, int] = (7, 50)
) -> tuple[list[Result], dict[str, str]]:
    """Times candidates in turns. Those that fail, for lack of memory for example, are left out.

    Args:
        candidates (Sequence[str]): Names, as in :func:`operator_step`. An error of the first is raised. Candidates that
            do not apply to the problem are skipped.
        problem (Problem): The involution and its tensors.
        budget (float): Seconds, as in :func:`time_in_turns`.
        rounds (tuple[int, int]): The smallest and the largest number of rounds. Defaults to (7, 50).

    Returns:
        tuple[list[Result], dict[str, str]]: Milliseconds of the candidates that ran, and the errors of the others by
        name.
    """
    torch.compiler.reset()
    steps, errors = {}, {}
    for name in candidates:
        if not applies(name, problem):
            continue
        try:
            step = operator_step(name, problem)
            step()
            steps[name] = step
        except Exception as error:
            if not steps:
                raise
            errors[name] = str(error).strip().partition('\n')[0]
    return list(time_results(steps, problem.labels, problem.device, budget, rounds, problem.moved_bytes)), errors


def applies(candidate: str, problem: Problem) -> bool:
    """Returns whether a candidate can compute a problem."""
    if candidate in GENERATING:
        return problem.phase == 'forward'
    if candidate == 'naive':
        on_cuda = torch.device(problem.device).type == 'cuda'
        return on_cuda and problem.dtype in naive_cuda.DTYPES and not problem.channels_last
    return True
