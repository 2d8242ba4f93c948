"""The parts of a report. Each returns its items in the order of importance: names, and functions that find something.

All parts need torch alone, except the networks, which need mmpretrain.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec

import torch

from ..benchmark.candidates import COMPILED, Problem
from ..benchmark.cases import Case, fpn_case, stage_cases
from ..benchmark.operator import time_candidates
from ..benchmark.timing import Result, captured, labels_of, time_results
from ..ops.backends import explain
from ..workers import Item
from .checks import LAYOUTS, PROBLEMS, QUICK, Check, behaviour, errors

DTYPES = ('float32', 'bfloat16', 'float16', 'float64')
SANITIZERS = ('memcheck', 'racecheck')  # tools of compute-sanitizer
CHECKS = (*DTYPES, 'behaviour', *SANITIZERS)
CANDIDATES = ('naive', 'depthwise', 'reference', 'unfused', 'fused')
NETWORKS = ('ResNet-50', 'RedNet-26', 'RedNet-38', 'RedNet-50')
ROUNDS = (7, 50)

Part = list[tuple[str, Callable[[], dict]]]


def correctness(dtype: str, device: torch.device, backend: str, quick: bool = False) -> Part:
    """Returns a check of each problem and layout in a dtype, with the fused operator and second derivatives."""
    torch.backends.cudnn.allow_tf32 = False  # the convolution before the involution would round to 10 bits
    torch.manual_seed(0)

    def check(*problem) -> dict:
        return {'errors': errors(*problem)}

    return [
        (
            f'{name}; {layout}; {dtype}',
            partial(check, batch, case, getattr(torch, dtype), device, layout, backend),
        )
        for name, batch, case in (PROBLEMS[:QUICK] if quick else PROBLEMS)
        for layout in LAYOUTS
    ]


def sanitized(device: torch.device, backend: str, quick: bool = False) -> Part:
    """Returns one check of each kind. Under compute-sanitizer a check takes a hundred times as long."""
    items = {
        name: measure for dtype in ('float32', 'bfloat16') for name, measure in correctness(dtype, device, backend)
    }
    chosen = ('a small map', 'odd sizes', 'a map of one pixel', 'wide rows', 'dilation')
    return [(name, measure) for start in chosen for name, measure in items.items() if name.startswith(start)]


def repeated_and_concurrent(device: torch.device, backend: str, quick: bool = False) -> Part:
    """Returns checks of streams, graphs and repeated runs."""
    torch.backends.cudnn.deterministic = True  # the bits of the convolution before the involution are compared, too
    torch.manual_seed(0)

    def run(check: Check) -> dict:
        return {'wrong': check.run()}

    return [(check.name, partial(run, check)) for check in behaviour(device, backend)]


def operator(
    device: torch.device,
    backend: str,
    quick: bool = False,
    cases: Iterable[tuple[Case, int]] | None = None,
    compiled: bool = False,
) -> Part:
    """Returns timings of the operator beside other candidates, or beside ``torch.compile`` of the plain formula.

    Args:
        device (torch.device): The device.
        backend (str): The backend that is timed.
        quick (bool): Whether only the most usual dtypes and layouts are timed. Defaults to False.
        cases (Iterable, optional): Pairs of a case and its batch size. Defaults to None: RedNet-50's four stages with
            batch size 64, and the FPN's finest level with one image.
        compiled (bool): Whether ``torch.compile`` is timed instead of other candidates. Defaults to False.
    """
    torch.backends.cudnn.benchmark = True
    cases = list(cases or [*((case, 64) for case in stage_cases()), (fpn_case((800, 1280)), 1)])
    settings = [(torch.float32, False), (torch.bfloat16, True)]
    if not quick:
        settings += [(torch.bfloat16, False), (torch.float32, True), (torch.float16, True)]
    if compiled:
        settings = settings[:1] + settings[2:3]
    candidates = (backend, 'floor', *(COMPILED if compiled else CANDIDATES))

    def measure(problem: Problem) -> dict:
        results, missing = time_candidates(candidates, problem, 0.5, ROUNDS)
        return {'results': [asdict(result) for result in results], 'missing': missing}

    problems = [
        Problem(case, batch, dtype, device, last, phase)
        for dtype, last in settings
        for phase in ('forward', 'backward')
        for case, batch in cases
    ]
    return [
        ('{shape}; batch {batch}; {dtype}; {layout}; {pass}'.format(**problem.labels), partial(measure, problem))
        for problem in problems
    ]


def networks(
    device: torch.device, backend: str, quick: bool = False, batch: int = 64, size: tuple[int, int] = (224, 224)
) -> Part:
    """Returns timings of RedNets beside ResNet-50: eager, compiled and as a CUDA graph, and the memory of training.

    Raises:
        ImportError: mmpretrain or mmcv is not installed.
    """
    if find_spec('mmpretrain') is None or find_spec('mmcv') is None:
        raise ImportError(
            "the networks need mmpretrain, mmcv and mmengine: pip install '.[openmmlab]' in mmrednet's folder"
        )
    torch.backends.cudnn.benchmark = True
    modes = [('inference', 'eager'), ('inference', 'CUDA graph'), ('training', 'eager')]
    if not quick:
        modes += [('inference', 'compiled'), ('training', 'memory'), ('training', 'compiled')]
    if device.type == 'cpu':
        modes = [(phase, mode) for phase, mode in modes if mode == 'eager']
    items: Part = []
    for phase, mode in modes:
        for dtype, last in ((torch.float32, False), (torch.bfloat16, True)):
            labels = labels_of(batch, dtype, last, phase)
            name = '{pass}; {mode}; batch {batch}; {dtype}; {layout}'.format(mode=mode, **labels)
            items.append((name, partial(_measure_networks, mode, batch, dtype, device, last, phase, size)))
    return items


def _measure_networks(
    mode: str, batch: int, dtype: torch.dtype, device: torch.device, last: bool, phase: str, size: tuple[int, int]
) -> dict:
    from ..benchmark.memory import network_memory
    from ..benchmark.networks import network_step

    setting = batch, dtype, device, last, phase, size
    labels = {'mode': mode, **labels_of(batch, dtype, last, phase)}
    # Compiling takes a minute or so for each network.
    names = (NETWORKS[0], NETWORKS[-1]) if mode == 'compiled' else NETWORKS
    if mode == 'memory':
        results = [Result(labels, name, 'MiB', network_memory(name, *setting).samples) for name in names]
        return {'results': [asdict(result) for result in results]}
    if mode == 'compiled':
        torch.compiler.reset()
    steps = {name: network_step(name, *setting, compiled=mode == 'compiled') for name in names}
    if mode == 'CUDA graph':
        steps = {name: captured(step, device) for name, step in steps.items()}
    return {'results': [asdict(result) for result in time_results(steps, labels, device, 3.0, ROUNDS)]}


PARTS: dict[str, Callable[..., Part]] = {
    **{dtype: partial(correctness, dtype) for dtype in DTYPES},
    'behaviour': repeated_and_concurrent,
    'operator': operator,
    'networks': networks,
    'compiled': partial(operator, compiled=True),
    **dict.fromkeys(SANITIZERS, sanitized),
}


def items_of(part: str, device: str, quick: bool) -> list[Item]:
    """Returns the items of a part for the backend that is used on a device. Their errors become their findings.

    Args:
        part (str): One of ``PARTS``.
        device (str): The device.
        quick (bool): Whether the part leaves out what is less important.
    """
    place = torch.device(device)
    if place.type == 'cuda':
        torch.cuda.set_device(place)
    backend, _ = explain(place)
    return [(name, partial(_try, measure, place)) for name, measure in PARTS[part](place, backend, quick)]


def _try(measure: Callable[[], dict], device: torch.device) -> dict:
    if device.type == 'cuda':
        torch.cuda.synchronize()  # raises, and so ends the process, if the last item has left the GPU unusable
        torch.cuda.empty_cache()
    try:
        return measure()
    except (MemoryError, torch.OutOfMemoryError) as error:
        return {'skipped': f'not enough memory: {first_line(error)}'}
    except Exception as error:
        return {'failed': f'{type(error).__name__}: {first_line(error)}'}


def first_line(error: object) -> str:
    """Returns the first line of an error's text, at most 300 characters of it."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), '')[:300]
