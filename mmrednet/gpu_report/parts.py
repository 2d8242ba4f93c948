"""The parts of a report. Each is a list of named functions that measure or check something, the most important first.

All parts need torch alone, except the networks, which need mmpretrain.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial

import torch

from ..benchmark.candidates import COMPILED, Problem
from ..benchmark.cases import Case, fpn_case, stage_cases
from ..benchmark.operator import time_candidates
from ..benchmark.timing import Setting, captured, time_results
from ..errors import one_line
from ..ops.backends import explain
from ..requirements import require
from ..workers import Item
from .checks import LAYOUTS, PROBLEMS, QUICK, behaviour, errors

DTYPES = ('float32', 'bfloat16', 'float16', 'float64')
CHECKS = (*DTYPES, 'behaviour')
CANDIDATES = ('naive', 'depthwise', 'reference', 'unfused', 'fused')
NETWORKS = ('ResNet-50', 'RedNet-26', 'RedNet-38', 'RedNet-50')
OPERATORS = (*((case, 64) for case in stage_cases()), (fpn_case((800, 1280)), 1))  # with their batch sizes
ROUNDS = (7, 50)

Part = list[tuple[str, Callable[[], dict]]]


def correctness(dtype: str, device: torch.device, backend: str, quick: bool = False) -> Part:
    """Returns a check of each problem and layout in a dtype, with the fused operator and second derivatives."""
    torch.backends.cudnn.allow_tf32 = False  # the convolution before the involution would round to 10 bits

    def check(batch: int, case: Case, layout: str) -> dict:
        return {'errors': errors(batch, case, getattr(torch, dtype), device, layout, backend)}

    return [
        (f'{name}; {layout}; {dtype}', partial(check, batch, case, layout))
        for name, batch, case in (PROBLEMS[:QUICK] if quick else PROBLEMS)
        for layout in LAYOUTS
    ]


def repeated_and_concurrent(device: torch.device, backend: str, quick: bool = False) -> Part:
    """Returns checks of streams, graphs and repeated runs."""
    torch.backends.cudnn.deterministic = True  # the bits of the convolution before the involution are compared, too

    def run(check: Callable[[], str | None]) -> dict:
        return {'wrong': check()}

    return [(name, partial(run, check)) for name, check in behaviour(device, backend)]


def operator(
    device: torch.device,
    backend: str,
    quick: bool = False,
    cases: Sequence[tuple[Case, int]] = OPERATORS,
    compiled: bool = False,
) -> Part:
    """Returns timings of the operator beside other candidates, or beside ``torch.compile`` of the plain formula."""
    torch.backends.cudnn.benchmark = True
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
        Problem(case, batch=batch, dtype=dtype, device=device, channels_last=last, phase=phase)
        for dtype, last in settings
        for phase in ('forward', 'backward')
        for case, batch in cases
    ]
    return [('; '.join(map(str, problem.labels.values())), partial(measure, problem)) for problem in problems]


def networks(
    device: torch.device, backend: str, quick: bool = False, batch: int = 64, size: tuple[int, int] = (224, 224)
) -> Part:
    """Returns timings of RedNets beside ResNet-50: eager, compiled and as a CUDA graph, and the memory of training."""
    require('mmpretrain')
    torch.backends.cudnn.benchmark = True
    modes = [('inference', 'eager'), ('training', 'eager')]
    if device.type == 'cuda':
        modes.insert(1, ('inference', 'CUDA graph'))
        if not quick:
            modes += [('inference', 'compiled'), ('training', 'memory (MiB)'), ('training', 'compiled')]

    def measure(mode: str, setting: Setting) -> dict:
        from ..benchmark.memory import network_memory
        from ..benchmark.networks import network_step

        labels = {'mode': mode, **setting.labels}
        if mode == 'memory (MiB)':
            results = [replace(network_memory(name, setting), labels=labels) for name in NETWORKS]
            return {'results': [asdict(result) for result in results]}
        compiled = mode == 'compiled'
        if compiled:
            torch.compiler.reset()
        names = (NETWORKS[0], NETWORKS[-1]) if compiled else NETWORKS  # compiling a network takes a minute
        steps = {name: network_step(name, setting, size, compiled) for name in names}
        if mode == 'CUDA graph':
            steps = {name: captured(step, device) for name, step in steps.items()}
        return {'results': [asdict(result) for result in time_results(steps, labels, device, 3.0, ROUNDS)]}

    items: Part = []
    for phase, mode in modes:
        for dtype, last in ((torch.float32, False), (torch.bfloat16, True)):
            setting = Setting(batch=batch, dtype=dtype, device=device, channels_last=last, phase=phase)
            items.append(('; '.join(map(str, (mode, *setting.labels.values()))), partial(measure, mode, setting)))
    return items


PARTS: dict[str, Callable[..., Part]] = {
    **{dtype: partial(correctness, dtype) for dtype in DTYPES},
    'behaviour': repeated_and_concurrent,
    'operator': operator,
    'networks': networks,
    'compiled': partial(operator, compiled=True),
}


def items_of(part: str, device: str, quick: bool) -> list[Item]:
    """Returns the items of a part for the backend that is used on a device. An item returns its error as a finding."""
    place = torch.device(device)
    if place.type == 'cuda':
        torch.cuda.set_device(place)
    torch.manual_seed(0)
    backend, _ = explain(place)
    return [(name, partial(_try, measure, place)) for name, measure in PARTS[part](place, backend, quick)]


def _try(measure: Callable[[], dict], device: torch.device) -> dict:
    if device.type == 'cuda':
        torch.cuda.synchronize()  # raises, and so ends the process, if the last item has left the GPU unusable
        torch.cuda.empty_cache()
    try:
        return measure()
    except (MemoryError, torch.OutOfMemoryError) as error:
        return {'skipped': f'not enough memory: {one_line(error)[:300]}'}
    except Exception as error:
        return {'failed': one_line(error)[:300]}
