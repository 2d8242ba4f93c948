"""Time and memory of the operator and of whole networks, each beside what it has to be compared with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from . import naive_cuda
from .candidates import (
    MODELS,
    PHASES,
    RUNTIMES,
    Case,
    bytes_moved,
    network_step,
    operator_step,
    runtime_step,
    working_backends,
)
from .timing import Result, Step, peak_memory, time_in_turns

GENERATING = ('apart', 'fused')  # candidates that generate the kernels too
FORMS = ('compiled unfold', 'compiled taps')


def benchmark_operator(
    cases: Sequence[Case],
    batches: Sequence[int] = (1,),
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    device: str | torch.device = 'cpu',
    channels_last: bool = False,
    budget: float = 20.0,
    compiled: bool = False,
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
        compiled (bool): Whether to time, as 'compiled', the faster of what ``torch.compile`` makes of the plain
            formula's two forms; compiling takes a minute or so for each case. Defaults to False.

    Yields:
        Result: Milliseconds of a candidate in a case.
    """
    forms = FORMS if compiled else ()
    backends = working_backends(device)
    for dtype in dtypes:
        naive = ('naive',) if 'cuda' in backends and dtype in naive_cuda.DTYPES and not channels_last else ()
        candidates = ('floor', 'depthwise', *naive, *backends)
        for phase in ('forward', 'backward'):
            for batch in batches:
                for case in cases:
                    setting = (case, batch, dtype, device, channels_last, phase)
                    generated = GENERATING if phase == 'forward' else ()
                    if compiled:
                        torch.compiler.reset()  # dynamo compiles a function for eight shapes, and no more
                    steps = {name: operator_step(name, *setting) for name in (*candidates, *generated, *forms)}
                    labels = dict(shape=str(case), **labels_of(batch, dtype, channels_last, phase))
                    moved = bytes_moved(case, batch, dtype, phase)
                    results = list(_timed(labels, steps, device, budget))
                    yield from (replace(r, bytes=moved) for r in results if r.candidate not in forms)
                    if compiled:
                        best = min((r for r in results if r.candidate in forms), key=lambda r: r.median)
                        yield replace(best, candidate='compiled', bytes=moved)


def time_candidates(
    candidates: Sequence[str],
    case: Case,
    batch: int,
    dtype: torch.dtype,
    device: str | torch.device,
    channels_last: bool,
    phase: str,
    budget: float,
    rounds: tuple[int, int] = (7, 50),
) -> tuple[list[Result], dict[str, str]]:
    """Times candidates that may fail, for want of memory for instance, in turns.

    Args:
        candidates (Sequence[str]): As in :func:`operator_step`, like the arguments up to ``phase``. The first must not
            fail; those that are for another pass, type or layout are left out.
        case (Case): The involution.
        batch (int): Its batch size.
        dtype (torch.dtype): Type of the tensors.
        device (str or torch.device): Where they lie.
        channels_last (bool): Whether they are channels-last.
        phase (str): 'forward' or 'backward'.
        budget (float): Seconds, as in :func:`time_in_turns`.
        rounds (tuple[int, int]): At least and at most. Defaults to (7, 50).

    Returns:
        tuple[list[Result], dict[str, str]]: Milliseconds of those that ran, and by name why the others did not.
    """
    torch.compiler.reset()
    steps, missing = {}, {}
    for name in candidates:
        if name in GENERATING and phase != 'forward':
            continue
        if name == 'naive' and (channels_last or dtype not in naive_cuda.DTYPES):
            continue
        try:
            step = operator_step(name, case, batch, dtype, device, channels_last, phase)
            step()
            steps[name] = step
        except Exception as error:
            if not steps:
                raise
            missing[name] = str(error).strip().partition('\n')[0]
    labels = dict(shape=str(case), **labels_of(batch, dtype, channels_last, phase))
    moved = bytes_moved(case, batch, dtype, phase)
    results = _timed(labels, steps, device, budget, rounds)
    return [replace(result, bytes=moved) for result in results], missing


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
                yield from _timed(labels_of(batch, dtype, last, phase), steps, device, budget)


def benchmark_runtimes(
    models: Sequence[str] = ('ResNet-50', 'RedNet-50'),
    batches: Sequence[int] = (1,),
    runtimes: Sequence[str] = tuple(RUNTIMES),
    budget: float = 20.0,
) -> Iterator[Result]:
    """Times classifiers of Table 1 in several runtimes on the CPU, in float32: of a batch size all in turns.

    Args:
        models (Sequence[str]): Their names, as in :func:`classifier`. Defaults to the two of depth 50.
        batches (Sequence[int]): Batch sizes. Defaults to (1,).
        runtimes (Sequence[str]): Of ``RUNTIMES``. Defaults to all.
        budget (float): Seconds for each runtime. Defaults to 20.

    Yields:
        Result: Milliseconds of a model in a runtime.

    Raises:
        ImportError: A package of a runtime is missing.
    """
    from ..export import FORMATS, check_format

    # Before files are written, which takes minutes.
    for form in filter(None, map(RUNTIMES.get, runtimes)):
        check_format(form, Path('model' + FORMATS[form].ending))
    for batch in batches:
        steps = {(runtime, model): runtime_step(model, runtime, batch) for runtime in runtimes for model in models}
        for (runtime, model), samples in time_in_turns(steps, 'cpu', budget * len(runtimes)).items():
            labels: dict[str, str | int] = {'batch': batch, 'dtype': 'float32', 'runtime': runtime}
            yield Result(labels, model, 'ms', tuple(1e3 * seconds for seconds in samples))


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
                labels = dict(what=str(case), **labels_of(batch, dtype, channels_last, phase))
                for candidate in ('depthwise', *working_backends(device)):
                    setting = (dtype, device, channels_last, phase)
                    build, warm_up = (
                        partial(operator_step, candidate, c, n, *setting) for c, n in ((case, batch), (small, 1))
                    )
                    yield Result(labels, candidate, 'MiB', (peak_memory(build, warm_up, device) / 2**20,))
        last = channels_last or dtype != torch.float32
        for phase in ('inference', 'training'):
            for batch in batches:
                labels = dict(what='network', **labels_of(batch, dtype, last, phase))
                for name in models:
                    build = partial(network_step, name, batch, dtype, device, last, phase)
                    warm_up = partial(network_step, name, 1, dtype, device, last, phase, (64, 64))
                    yield Result(labels, name, 'MiB', (peak_memory(build, warm_up, device) / 2**20,))


def labels_of(batch: int, dtype: torch.dtype, channels_last: bool, phase: str) -> dict[str, str | int]:
    """Returns the labels of a :class:`Result` that is measured in this setting."""
    layout = 'channels-last' if channels_last else 'contiguous'
    return {'batch': batch, 'pass': phase, 'dtype': str(dtype).removeprefix('torch.'), 'layout': layout}


def _timed(
    labels: Mapping,
    steps: Mapping[str, Step],
    device: str | torch.device,
    budget: float,
    rounds: tuple[int, int] = (7, 100),
) -> Iterator[Result]:
    for candidate, samples in time_in_turns(steps, device, budget, rounds).items():
        yield Result(labels, candidate, 'ms', tuple(1e3 * seconds for seconds in samples))
