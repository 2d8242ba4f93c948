"""The peak memory of the operator and of networks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import torch

from .candidates import Problem, operator_step, working_backends
from .cases import Case
from .networks import MODELS, network_step
from .timing import Result, Step, labels_of

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


def network_memory(
    model: str, batch: int, dtype: torch.dtype, device: str | torch.device, channels_last: bool, phase: str
) -> Result:
    """Returns the peak memory of a model, in MiB. The arguments are those of :func:`network_step`."""
    setting = dtype, device, channels_last, phase
    build = partial(network_step, model, batch, *setting)
    warm_up = partial(network_step, model, 1, *setting, size=(64, 64))
    labels = {'shape': '3x224x224', **labels_of(batch, dtype, channels_last, phase)}
    return Result(labels, model, 'MiB', (peak_memory(build, warm_up, device) / 2**20,))


def benchmark_memory(
    cases: Mapping[Case, int],
    models: Sequence[str] = MODELS,
    batches: Sequence[int] = (1,),
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    device: str | torch.device = 'cpu',
    channels_last: bool = False,
) -> Iterator[Result]:
    """Yields the peak memory of the operator in cases with their batch sizes, and of classifiers, in MiB."""
    for dtype in dtypes:
        for phase in ('forward', 'training'):
            for case, batch in cases.items():
                for candidate in ('depthwise', *working_backends(device)):
                    yield operator_memory(candidate, Problem(case, batch, dtype, device, channels_last, phase))
        last = channels_last or dtype != torch.float32
        for phase in ('inference', 'training'):
            for batch in batches:
                for model in models:
                    yield network_memory(model, batch, dtype, device, last, phase)
