"""The time of functions, measured in turns, and the memory that they take at most."""

import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from math import ceil
from multiprocessing import get_context
from typing import TypeVar

import torch
from torch import Tensor

BLOCK = 2e-3  # seconds of a sample on the CPU, at least

Step = Callable[[], object]
Name = TypeVar('Name', bound=Hashable)


@dataclass(frozen=True)
class Result:
    """What was measured of one candidate.

    Args:
        labels (Mapping): What was measured: 'shape', 'batch' and so on.
        candidate (str): Whose figures these are: a backend or a model, for example.
        unit (str): 'ms' or 'MiB'.
        samples (tuple[float, ...]): The figures, in the order in which they were taken.
        bytes (int, optional): What an involution has to read and write in this case. Defaults to None, not known.
    """

    labels: Mapping[str, str | int]
    candidate: str
    unit: str
    samples: tuple[float, ...]
    bytes: int | None = None

    def quantile(self, q: float) -> float:
        """Returns what a part ``q`` of the samples is below, interpolated linearly."""
        return torch.tensor(self.samples, dtype=torch.float64).quantile(q).item()

    @property
    def median(self) -> float:
        """The samples' median."""
        return self.quantile(0.5)

    @property
    def iqr(self) -> float:
        """The samples' interquartile range: the middle half of them is that wide."""
        return self.quantile(0.75) - self.quantile(0.25)


def by_case(results: Sequence[Result]) -> list[list[Result]]:
    """Returns the results with equal labels together, which are those of the candidates in one case."""
    cases: dict[tuple, list[Result]] = {}
    for result in results:
        cases.setdefault(tuple(result.labels.items()), []).append(result)
    return list(cases.values())


def time_in_turns(
    steps: Mapping[Name, Step],
    device: str | torch.device = 'cpu',
    budget: float = 20.0,
    rounds: tuple[int, int] = (7, 100),
) -> dict[Name, list[float]]:
    """Times functions round by round, so that a machine that slows down or speeds up does so for all of them.

    Each is called twice beforehand, to compile, tune and allocate. In a round each has its turn, in an order that is
    drawn anew, since a function finds the caches as the one before has left them. On the CPU a sample is the average of
    as many calls as take 2 ms. On a GPU it is one call between two events, after the caches were overwritten.

    Args:
        steps (Mapping[str, Callable]): The functions, by name.
        device (str or torch.device): Where they run. Defaults to 'cpu'.
        budget (float): Seconds after which no further round begins. Defaults to 20.
        rounds (tuple[int, int]): Rounds at least, whatever they take, and at most. Defaults to (7, 100).

    Returns:
        dict[Hashable, list[float]]: The seconds of a call, one sample a round.
    """
    device = torch.device(device)
    calls = {}
    for name, step in steps.items():
        _seconds(step, 1, device)
        calls[name] = ceil(BLOCK / _seconds(step, 1, device)) if device.type == 'cpu' else 1
    samples: dict[Name, list[float]] = {name: [] for name in steps}
    spent, order = 0.0, random.Random(0)
    while (done := len(next(iter(samples.values())))) < rounds[1] and (done < rounds[0] or spent < budget):
        for name in order.sample(list(steps), len(steps)):
            seconds = _seconds(steps[name], calls[name], device)
            samples[name].append(seconds / calls[name])
            spent += seconds
    return samples


def _seconds(step: Step, calls: int, device: torch.device) -> float:
    """Returns the time that some calls take together."""
    if device.type == 'cpu':
        begin = time.perf_counter()
        for _ in range(calls):
            step()
        return time.perf_counter() - begin
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Meanwhile the host runs ahead, so that the events enclose the kernels and not their launches.
        for _ in range(8):
            _scratch(device).zero_()
        torch.cuda._sleep(2_000_000)  # cycles: about 1 ms
        start.record()
        for _ in range(calls):
            step()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1e3


def captured(step: Step, device: str | torch.device = 'cuda') -> Step:
    """Returns a function that replays a function as a CUDA graph, after three calls to warm up.

    Args:
        step (Callable): The function, which reads and writes the same tensors at each call.
        device (str or torch.device): Its GPU. Defaults to 'cuda', the current one.
    """
    with torch.cuda.device(device):
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            step()
    return graph.replay


@cache
def _scratch(device: torch.device) -> Tensor:
    """Returns a tensor that is larger than the caches of a GPU."""
    return torch.empty(1 << 28, dtype=torch.uint8, device=device)


def peak_memory(build: Callable[[], Step], warm_up: Callable[[], Step], device: str | torch.device = 'cpu') -> int:
    """Returns the bytes that a function takes at most while it runs, its result included, its model and inputs not.

    On a GPU they are those of torch's allocator. On the CPU they are the growth of the resident set of a process that
    runs nothing else, from ``/proc``, which Linux has.

    Args:
        build (Callable): Returns the function; on the CPU it must be picklable.
        warm_up (Callable): Returns a small one of its kind, which loads the code that it needs.
        device (str or torch.device): Where it runs. Defaults to 'cpu'.
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
        file.write('5')  # the peak is what there is now
    before = _status('VmRSS')
    step()
    return _status('VmHWM') - before


def _status(field: str) -> int:
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(field))
