"""The time of functions, measured in turns."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import ceil

import torch
from torch import Tensor

BLOCK = 2e-3  # the shortest duration of a sample on the CPU, in seconds

Step = Callable[[], object]
Labels = Mapping[str, str | int]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How something is measured. ``dtype`` is that of the operator's tensors, or of autocast for networks."""

    batch: int = 1
    dtype: torch.dtype = torch.float32
    device: str | torch.device = 'cpu'
    channels_last: bool = False
    phase: str = 'forward'

    @property
    def labels(self) -> Labels:
        """The labels of a :class:`Result` in this setting."""
        dtype, layout = str(self.dtype).removeprefix('torch.'), 'channels-last' if self.channels_last else 'contiguous'
        return {'batch': self.batch, 'phase': self.phase, 'dtype': dtype, 'layout': layout}

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of tensors with four dimensions."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def randn(self, *shape: int) -> Tensor:
        """Returns a random tensor with the dtype, device and memory format of the setting."""
        memory_format = self.memory_format if len(shape) == 4 else torch.contiguous_format
        return torch.randn(shape, device=self.device).to(dtype=self.dtype, memory_format=memory_format)

    def step(self, function: Callable[..., Tensor], inputs: Sequence[Tensor], output_shape: Sequence[int]) -> Step:
        """Returns a function that runs the phase of a differentiable function once.

        The phase is 'forward', 'training' (forward and backward pass) or 'backward'.
        """
        if self.phase == 'forward':
            return torch.no_grad()(partial(function, *inputs))
        for tensor in inputs:
            tensor.requires_grad_()
        grad = self.randn(*output_shape)
        if self.phase == 'training':
            return lambda: torch.autograd.grad(function(*inputs), inputs, grad)
        return partial(torch.autograd.grad, function(*inputs), inputs, grad, retain_graph=True)

    def autocast(self) -> torch.autocast:
        """Returns the context in which a network runs."""
        return torch.autocast(torch.device(self.device).type, self.dtype, enabled=self.dtype != torch.float32)


@dataclass(frozen=True)
class Result:
    """The measurement of one candidate, such as a backend or a model."""

    labels: Labels  # the setting: 'shape', 'batch' and so on
    candidate: str
    unit: str  # 'ms' or 'MiB'
    samples: tuple[float, ...]  # in the order in which they were measured
    bytes: int | None = None  # that an involution has to read and write

    def quantile(self, q: float) -> float:
        """Returns the quantile ``q`` of the samples, interpolated linearly."""
        return torch.tensor(self.samples, dtype=torch.float64).quantile(q).item()

    @property
    def median(self) -> float:
        """The median of the samples."""
        return self.quantile(0.5)

    @property
    def iqr(self) -> float:
        """The interquartile range of the samples: the width of the interval that holds their middle half."""
        return self.quantile(0.75) - self.quantile(0.25)


def by_case(results: Sequence[Result]) -> list[list[Result]]:
    """Groups results by their labels. A group holds the candidates that were measured in the same setting."""
    cases: dict[tuple, list[Result]] = {}
    for result in results:
        cases.setdefault(tuple(result.labels.items()), []).append(result)
    return list(cases.values())


def time_in_turns(
    steps: Mapping[str, Step],
    device: str | torch.device,
    budget: float,
    rounds: tuple[int, int] = (7, 100),
) -> dict[str, list[float]]:
    """Times functions in rounds, so that a change in the machine's speed affects all of them.

    First each function is called twice, to compile, tune and allocate. In a round each function has one turn. Their
    order is random in each round, since the time of a function also depends on what the previous one left in the
    caches. A sample is the average of as many calls as take 2 ms. With CUDA a sample is one call, timed by two events
    after the caches were overwritten.

    ``budget`` is the time in seconds after which no new round begins, and ``rounds`` are the smallest and the largest
    number of rounds. Returns the seconds for a call of each function, one sample for each round.
    """
    device = torch.device(device)
    calls = {}
    for name, step in steps.items():
        _seconds(step, 1, device)
        calls[name] = ceil(BLOCK / _seconds(step, 1, device)) if device.type != 'cuda' else 1
    samples: dict[str, list[float]] = {name: [] for name in steps}
    spent, order = 0.0, random.Random(0)
    while (done := len(next(iter(samples.values())))) < rounds[1] and (done < rounds[0] or spent < budget):
        for name in order.sample(list(steps), len(steps)):
            seconds = _seconds(steps[name], calls[name], device)
            samples[name].append(seconds / calls[name])
            spent += seconds
    return samples


def time_results(
    steps: Mapping[str, Step],
    labels: Labels,
    device: str | torch.device,
    budget: float,
    rounds: tuple[int, int] = (7, 100),
    bytes: int | None = None,
) -> Iterator[Result]:
    """Times functions as :func:`time_in_turns` does, and yields a :class:`Result` in milliseconds for each."""
    for candidate, samples in time_in_turns(steps, device, budget, rounds).items():
        yield Result(labels, candidate, 'ms', tuple(1e3 * seconds for seconds in samples), bytes)


def _seconds(step: Step, calls: int, device: torch.device) -> float:
    """Returns the total time of some calls, in seconds."""
    if device.type != 'cuda':
        synchronize = getattr(torch, device.type).synchronize
        synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            step()
        synchronize()
        return time.perf_counter() - begin
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Keeps the GPU busy while the host launches the calls, so that the events measure the kernels only.
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
    """Captures a function in a CUDA graph and returns its replay. Each call must use the same tensors."""
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
    """Returns a tensor that is larger than the caches of any GPU."""
    return torch.empty(1 << 28, dtype=torch.uint8, device=device)
