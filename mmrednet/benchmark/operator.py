"""The time of the operator and of the candidates that it is compared with. It needs torch alone."""

from collections.abc import Iterator, Sequence

import torch

from . import naive_cuda
from .candidates import GENERATING, Problem, operator_step, working_backends
from .timing import Result, time_results


def benchmark_operator(problems: Sequence[Problem], budget: float) -> Iterator[Result]:
    """Times the backends of the operator, the depthwise convolution and a copy of the same bytes, in turns.

    The forward pass is also timed with the generation of the kernels, unfused and fused. The straightforward CUDA
    kernels are timed only on contiguous tensors in float32 and float64. ``budget`` is in seconds for each problem.
    Yields milliseconds.
    """
    for problem in problems:
        names = ('floor', 'depthwise', 'naive', *working_backends(problem.device), *GENERATING)
        steps = {name: operator_step(name, problem) for name in names if applies(name, problem)}
        yield from time_results(steps, problem.labels, problem.device, budget, bytes=problem.moved_bytes)


def time_candidates(
    candidates: Sequence[str], problem: Problem, budget: float, rounds: tuple[int, int] = (7, 100)
) -> tuple[list[Result], dict[str, str]]:
    """Times candidates in turns, and returns their milliseconds and the errors of those that fail, by name.

    An error of the first candidate is raised. Candidates that do not apply to the problem are skipped.
    """
    torch.compiler.reset()  # dynamo compiles one function for at most eight shapes
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
