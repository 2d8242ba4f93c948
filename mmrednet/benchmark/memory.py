"""The peak memory of the operator and of networks."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import torch

from .candidates import Problem, operator_step, working_backends
from .cases import Case
from .networks import network_step
from .timing import Result, Setting, Step

SMALL = Case(16, (8, 8))  # loads the code that the operator needs


def peak_memory(build: Callable[[], Step], warm_up: Callable[[], Step], device: str | torch.device = 'cpu') -> int:
    """Returns the largest number of bytes that a call takes: its result is included, the model and the inputs are not.

    ``build`` returns the function to measure, and ``warm_up`` one that loads the same code with small tensors. On a GPU
    the memory is what torch's allocator gives out. On the CPU it is the growth of the resident set of a process that
    runs nothing else, which only Linux reports (in ``/proc``); there both functions must be picklable.
    """
    device = torch.device(device)
    if device.type == 'cpu':
        with ProcessPoolExecutor(1, get_context('spawn')) as process:
            return process.submit(_peak_resident, build, warm_up, torch.get_num_threads()).result()
    warm_up()()
    step = build()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def _peak_resident(build: Callable[[], Step], warm_up: Callable[[], Step], threads: int) -> int:
    torch.set_num_threads(threads)
    warm_up()()
    step = build()
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')  # resets the peak to the present value
    before = _status('VmRSS')
    step()
    return _status('VmHWM') - before


def _status(field: str) -> int:
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(field))


def operator_memory(candidate: str, problem: Problem) -> Result:
    """Returns the peak memory of a candidate of :func:`operator_step`, in MiB."""
    small = replace(problem, case=SMALL, batch=1)
    build, warm_up = (partial(operator_step, candidate, p) for p in (problem, small))
    return Result(problem.labels, candidate, 'MiB', (peak_memory(build, warm_up, problem.device) / 2**20,))


def network_memory(model: str, setting: Setting) -> Result:
    """Returns the peak memory of a model of :func:`network_step`, in MiB."""
    build = partial(network_step, model, setting)
    warm_up = partial(network_step, model, replace(setting, batch=1), (64, 64))
    labels = {'shape': '3x224x224', **setting.labels}
    return Result(labels, model, 'MiB', (peak_memory(build, warm_up, setting.device) / 2**20,))


def benchmark_memory(
    problems: Sequence[Problem], models: Sequence[str], settings: Sequence[Setting]
) -> Iterator[Result]:
    """Yields the peak memory of the operator in problems, and of classifiers in settings, in MiB."""
    for problem in problems:
        for candidate in ('depthwise', *working_backends(problem.device)):
            yield operator_memory(candidate, problem)
    for setting in settings:
        for model in models:
            yield network_memory(model, setting)
