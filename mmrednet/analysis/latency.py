"""Time and memory of the operator and of whole networks (Table 2), each beside what it has to be compared with."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from math import ceil, prod
from multiprocessing import get_context

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import Involution
from ..models.rednet import RedNet
from ..ops import BACKENDS, fused_involution2d, involution2d
from ..ops.arguments import output_size, same_padding
from ..ops.backends.pytorch import generate_kernel
from . import naive_cuda
from .tables import ROWS, build_model, load_config

MODELS = ('ResNet-50', 'ResNet-101', 'RedNet-26', 'RedNet-38', 'RedNet-50', 'RedNet-101')
PHASES = ('inference', 'inference, fused', 'training')
BLOCK = 2e-3  # seconds of a sample on the CPU, at least

Step = Callable[[], object]


@dataclass(frozen=True)
class Result:
    """What was measured of one candidate.

    Args:
        labels (Mapping): What was measured: 'shape', 'batch' and so on.
        candidate (str): Whose figures these are: a backend or a model, for example.
        unit (str): 'ms' or 'MiB'.
        samples (tuple[float, ...]): The figures, in the order in which they were taken.
    """

    labels: Mapping[str, str | int]
    candidate: str
    unit: str
    samples: tuple[float, ...]

    def quantile(self, q: float) -> float:
        """Returns what a part ``q`` of the samples is below, interpolated linearly."""
        return float(np.quantile(self.samples, q))

    @property
    def median(self) -> float:
        """The samples' median."""
        return self.quantile(0.5)

    @property
    def iqr(self) -> float:
        """The samples' interquartile range: the middle half of them is that wide."""
        return self.quantile(0.75) - self.quantile(0.25)


@dataclass(frozen=True)
class Case:
    """One involution, without its batch size; the padding is 'same'.

    Args:
        channels (int): Channels C.
        size (tuple[int, int]): Height and width of the input.
        kernel_size (tuple[int, int]): Height and width K of the window. Defaults to (7, 7).
        stride (tuple[int, int]): Vertical and horizontal stride. Defaults to (1, 1).
        groups (int): Groups G. Defaults to 1.
    """

    channels: int
    size: tuple[int, int]
    kernel_size: tuple[int, int] = (7, 7)
    stride: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def padding(self) -> tuple[int, int]:
        """The padding that 'same' stands for."""
        return same_padding(self.kernel_size, (1, 1))

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        return output_size(self.size, self.kernel_size, self.stride, self.padding, (1, 1))

    def __str__(self) -> str:
        text = f'{self.channels}x{self.size[0]}x{self.size[1]}, K = {self.kernel_size[0]}'
        return text if self.stride == (1, 1) else f'{text}, stride {self.stride[0]}'


def rednet_cases(depth: int = 50, size: tuple[int, int] = (224, 224)) -> list[Case]:
    """Returns the involutions of a RedNet, from the stem on, each once.

    Args:
        depth (int): The RedNet's depth. Defaults to 50.
        size (tuple[int, int]): Height and width of the image. Defaults to (224, 224).
    """
    cases = {}

    def see(layer: Involution, args: tuple[Tensor], out: Tensor) -> None:
        case = Case(layer.out_channels, tuple(args[0].shape[2:]), layer.kernel_size, layer.stride, layer.groups)
        cases[case] = None

    with torch.device('meta'), torch.no_grad():
        model = RedNet(depth).eval()
        for layer in model.modules():
            if isinstance(layer, Involution):
                layer.register_forward_hook(see)
        model(torch.empty(1, 3, *size))
    return list(cases)


def fpn_case(size: tuple[int, int]) -> Case:
    """Returns the involution of FPN's finest level, P2, which has a quarter of the image's height and width."""
    return Case(256, (size[0] // 4, size[1] // 4), groups=16)


def working_backends(device: str | torch.device) -> list[str]:
    """Returns the operator's backends that work on a device."""
    working = []
    for backend in BACKENDS:
        try:
            involution2d(torch.ones(1, 1, 1, 1, device=device), torch.ones((1,) * 6, device=device), backend=backend)
        except (RuntimeError, ValueError):  # its compiler is missing, or it is for another device
            continue
        working.append(backend)
    return working


def operator_step(
    candidate: str,
    case: Case,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = 'cpu',
    channels_last: bool = False,
    phase: str = 'forward',
) -> Step:
    """Returns a function that runs a candidate once, on random tensors.

    The candidate 'floor' moves as many bytes as the operator has to: forward input, kernel and output once; backward
    input, kernel and the gradients of all three. It copies a tensor of half as many, since a byte copied is one read
    and one write; so its time is those bytes over the bandwidth of a copy.

    Args:
        candidate (str): A backend of the operator, 'depthwise' for the depthwise convolution with the same window and
            shapes, 'floor', 'naive' for the straightforward CUDA kernels on contiguous tensors, or with the generation
            of the kernels from C / 4 channels 'apart' (a 1x1 convolution, then the fastest backend) or 'fused'.
        case (Case): The involution.
        batch (int): Batch size. Defaults to 1.
        dtype (torch.dtype): Type of all tensors. Defaults to float32.
        device (str or torch.device): Where they lie. Defaults to 'cpu'.
        channels_last (bool): Whether they are channels-last. Defaults to False.
        phase (str): 'forward'; 'backward', both gradients, from a forward pass that went before; or 'training', a
            forward pass and both gradients. Defaults to 'forward'.
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype=dtype, memory_format=memory_format)

    shape = (batch, case.channels, *case.size)
    kernel_shape = (batch, case.groups * prod(case.kernel_size), *case.output_size)
    output_shape = (batch, case.channels, *case.output_size)
    if candidate == 'floor':
        moved = (1 if phase == 'forward' else 2) * (prod(shape) + prod(kernel_shape)) + prod(output_shape)
        source = torch.ones(ceil(moved / 2), dtype=dtype, device=device)
        return partial(torch.empty_like(source).copy_, source)

    if candidate == 'naive':
        kernel = randn(*kernel_shape).unflatten(1, (case.groups, *case.kernel_size))
        return _naive_step(randn(*shape), kernel, randn(*output_shape), case, phase)
    if candidate == 'depthwise':
        inputs = (randn(*shape), randn(case.channels, 1, *case.kernel_size))
        forward = partial(F.conv2d, *inputs, stride=case.stride, padding=case.padding, groups=case.channels)
    elif candidate in ('apart', 'fused'):
        features = randn(batch, max(case.channels // 4, 1), *case.output_size)
        weight = randn(kernel_shape[1], features.shape[1], 1, 1)
        inputs = (randn(*shape), features, weight, torch.randn(kernel_shape[1], device=device).to(dtype))
        forward = partial(
            _apart if candidate == 'apart' else fused_involution2d, *inputs, case.kernel_size, case.stride
        )
    else:
        inputs = (randn(*shape), randn(*kernel_shape).unflatten(1, (case.groups, *case.kernel_size)))
        forward = partial(involution2d, *inputs, stride=case.stride, backend=candidate)
    if phase == 'forward':
        return torch.no_grad()(forward)
    for tensor in inputs:
        tensor.requires_grad_()
    grad = randn(*output_shape)
    if phase == 'training':
        return lambda: torch.autograd.grad(forward(), inputs, grad)
    return partial(torch.autograd.grad, forward(), inputs, grad, retain_graph=True)


def _naive_step(input: Tensor, kernel: Tensor, output: Tensor, case: Case, phase: str) -> Step:
    geometry = case.stride, case.padding, (1, 1)
    grad_input, grad_kernel = torch.empty_like(input), torch.empty_like(kernel)

    def step() -> None:
        if phase != 'backward':
            naive_cuda.involution2d(output, input, kernel, *geometry)
        if phase != 'forward':
            naive_cuda.grad_input(grad_input, output, kernel, *geometry)
            naive_cuda.grad_kernel(grad_kernel, output, input, *geometry)

    return step


def _apart(input, features, weight, bias, kernel_size, stride) -> Tensor:
    """Does what ``fused_involution2d`` does, one after the other."""
    return involution2d(input, generate_kernel(features, weight, bias, kernel_size), stride)


def network_step(
    name: str,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = 'cpu',
    channels_last: bool = False,
    phase: str = 'inference',
    size: tuple[int, int] = (224, 224),
) -> Step:
    """Returns a function that runs a classifier of Table 1 once, on random images.

    Args:
        name (str): 'RedNet-50' or another model of Table 1, where wanted with a backend: 'RedNet-50/reference'.
        batch (int): Batch size. Defaults to 1.
        dtype (torch.dtype): Type of autocast; float32 is without autocast. Defaults to float32.
        device (str or torch.device): Where the model lies. Defaults to 'cpu'.
        channels_last (bool): Whether weights and images are channels-last. Defaults to False.
        phase (str): One of ``PHASES``: 'inference', with its norm layers or with those fused that ``fuse_conv_bn``
            fuses, or 'training', a forward and a backward pass. Defaults to 'inference'.
        size (tuple[int, int]): Height and width of the images. Defaults to (224, 224).

    Raises:
        ValueError: There is no such model or phase.
    """
    from mmcv.cnn import fuse_conv_bn

    name, _, backend = name.partition('/')
    rows = {row.model: row for row in ROWS if row.table == '1'}
    if name not in rows:
        raise ValueError(f'model must be one of {tuple(rows)}, but is {name!r}')
    if phase not in PHASES:
        raise ValueError(f'phase must be one of {PHASES}, but is {phase!r}')
    row = (
        replace(rows[name], options={**rows[name].options, 'model.backbone.backend': backend})
        if backend
        else rows[name]
    )

    device = torch.device(device)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = build_model(load_config(row)).to_empty(device=device)
    for module in model.modules():
        if hasattr(module, 'reset_parameters'):
            module.reset_parameters()
    model.to(memory_format=memory_format)
    images = torch.randn(batch, 3, *size, device=device).to(memory_format=memory_format)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    if phase != 'training':
        if phase == 'inference, fused':
            model = fuse_conv_bn(model)

        @torch.no_grad()
        def infer() -> None:
            with autocast:
                model(images, mode='tensor')

        return infer

    model.train()
    labels = torch.zeros(batch, dtype=torch.long, device=device)

    def train() -> None:
        model.zero_grad()
        with autocast:
            loss = F.cross_entropy(model(images, mode='tensor'), labels)
        loss.backward()

    return train


def benchmark_operator(
    cases: Sequence[Case],
    batches: Sequence[int] = (1,),
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    device: str | torch.device = 'cpu',
    channels_last: bool = False,
    budget: float = 20.0,
) -> Iterator[Result]:
    """Times the operator: its backends, the depthwise convolution and the bytes-moved floor, in turns.

    The forward pass is also timed with the generation of the kernels, apart and fused; the straightforward CUDA kernels
    are timed on what they are written for, contiguous tensors in float32 and float64.

    Args:
        cases (Sequence[Case]): The involutions.
        batches (Sequence[int]): Batch sizes. Defaults to (1,).
        dtypes (Sequence[torch.dtype]): Types of the tensors. Defaults to (torch.float32,).
        device (str or torch.device): Where they lie. Defaults to 'cpu'.
        channels_last (bool): Whether they are channels-last. Defaults to False.
        budget (float): Seconds for each case, as in :func:`time_in_turns`. Defaults to 20.

    Yields:
        Result: Milliseconds of a candidate in a case.
    """
    backends = working_backends(device)
    for dtype in dtypes:
        naive = ('naive',) if 'cuda' in backends and dtype in naive_cuda.DTYPES and not channels_last else ()
        candidates = ('floor', 'depthwise', *naive, *backends)
        for phase in ('forward', 'backward'):
            for batch in batches:
                for case in cases:
                    setting = (case, batch, dtype, device, channels_last, phase)
                    generated = ('apart', 'fused') if phase == 'forward' else ()
                    steps = {name: operator_step(name, *setting) for name in (*candidates, *generated)}
                    labels = dict(shape=str(case), **_labels(batch, dtype, channels_last, phase))
                    yield from _timed(labels, steps, device, budget)


def benchmark_network(
    models: Sequence[str] = MODELS,
    batches: Sequence[int] = (1,),
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    device: str | torch.device = 'cpu',
    channels_last: bool = False,
    phases: Sequence[str] = PHASES,
    budget: float = 20.0,
) -> Iterator[Result]:
    """Times classifiers of Table 1, in turns.

    Args:
        models (Sequence[str]): Their names, as in :func:`network_step`. Defaults to those of Table 2 and their like.
        batches (Sequence[int]): Batch sizes. Defaults to (1,).
        dtypes (Sequence[torch.dtype]): Types of autocast; autocast comes with channels-last. Defaults to
            (torch.float32,), without autocast.
        device (str or torch.device): Where the models lie. Defaults to 'cpu'.
        channels_last (bool): Whether they are channels-last in float32 too. Defaults to False.
        phases (Sequence[str]): Of ``PHASES``. Defaults to all.
        budget (float): Seconds for each case, as in :func:`time_in_turns`. Defaults to 20.

    Yields:
        Result: Milliseconds of a model in a case.
    """
    for phase in phases:
        for dtype in dtypes:
            last = channels_last or dtype != torch.float32
            for batch in batches:
                steps = {name: network_step(name, batch, dtype, device, last, phase) for name in models}
                yield from _timed(_labels(batch, dtype, last, phase), steps, device, budget)


def benchmark_memory(
    cases: Mapping[Case, int],
    models: Sequence[str] = MODELS,
    batches: Sequence[int] = (1,),
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    device: str | torch.device = 'cpu',
    channels_last: bool = False,
) -> Iterator[Result]:
    """Measures the peak memory of the operator and of classifiers, as :func:`peak_memory` does.

    Args:
        cases (Mapping[Case, int]): The involutions, with their batch sizes.
        models (Sequence[str]): As in :func:`benchmark_network`, like all that follow.
        batches (Sequence[int]): Batch sizes of the models. Defaults to (1,).
        dtypes (Sequence[torch.dtype]): Types of the operator's tensors and of autocast. Defaults to (torch.float32,).
        device (str or torch.device): Where everything lies. Defaults to 'cpu'.
        channels_last (bool): Whether it is channels-last in float32 too. Defaults to False.

    Yields:
        Result: MiB of a candidate in a case.
    """
    small = Case(16, (8, 8))
    for dtype in dtypes:
        for phase in ('forward', 'training'):
            for case, batch in cases.items():
                labels = dict(what=str(case), **_labels(batch, dtype, channels_last, phase))
                for candidate in ('depthwise', *working_backends(device)):
                    setting = (dtype, device, channels_last, phase)
                    build, warm_up = (
                        partial(operator_step, candidate, c, n, *setting) for c, n in ((case, batch), (small, 1))
                    )
                    yield Result(labels, candidate, 'MiB', (peak_memory(build, warm_up, device) / 2**20,))
        last = channels_last or dtype != torch.float32
        for phase in ('inference', 'training'):
            for batch in batches:
                labels = dict(what='network', **_labels(batch, dtype, last, phase))
                for name in models:
                    build = partial(network_step, name, batch, dtype, device, last, phase)
                    warm_up = partial(network_step, name, 1, dtype, device, last, phase, (64, 64))
                    yield Result(labels, name, 'MiB', (peak_memory(build, warm_up, device) / 2**20,))


def _labels(batch: int, dtype: torch.dtype, channels_last: bool, phase: str) -> dict[str, str | int]:
    layout = 'channels-last' if channels_last else 'contiguous'
    return {'batch': batch, 'pass': phase, 'dtype': str(dtype).removeprefix('torch.'), 'layout': layout}


def _timed(labels: Mapping, steps: Mapping[str, Step], device: str | torch.device, budget: float) -> Iterator[Result]:
    for candidate, samples in time_in_turns(steps, device, budget).items():
        yield Result(labels, candidate, 'ms', tuple(1e3 * seconds for seconds in samples))


def time_in_turns(
    steps: Mapping[str, Step],
    device: str | torch.device = 'cpu',
    budget: float = 20.0,
    rounds: tuple[int, int] = (7, 100),
) -> dict[str, list[float]]:
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
        dict[str, list[float]]: The seconds of a call, one sample a round.
    """
    device = torch.device(device)
    calls = {}
    for name, step in steps.items():
        _seconds(step, 1, device)
        calls[name] = ceil(BLOCK / _seconds(step, 1, device)) if device.type == 'cpu' else 1
    samples, spent, order = {name: [] for name in steps}, 0.0, random.Random(0)
    while (done := len(next(iter(samples.values())))) < rounds[1] and (done < rounds[0] or spent < budget):
        for name in order.sample(list(steps), len(steps)):
            seconds = _seconds(steps[name], calls[name], device)
            samples[name].append(seconds / calls[name])
            spent += seconds
    return samples


def _seconds(step: Step, calls: int, device: torch.device) -> float:
    """Returns the time that some calls take together."""
    if device.type == 'cpu':
        start = time.perf_counter()
        for _ in range(calls):
            step()
        return time.perf_counter() - start
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Meanwhile the host runs ahead, so that the events enclose the kernels and not their launches.
        for _ in range(8):
            _scratch(device).zero_()
        start.record()
        for _ in range(calls):
            step()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1e3


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
