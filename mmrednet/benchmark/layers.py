"""The time of all involution layers of a model. It needs the toolbox of the model's config."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from .. import toolboxes
from ..complexity.tables import build_model, run_model
from ..environment import describe_machine
from ..formatting import markdown_list, markdown_table, rounded
from ..layers import Involution
from ..ops.backends import explain
from .candidates import Problem, operator_step
from .cases import Call, record_calls
from .timing import Result, Setting, Step, time_results

HEADER = 'first layer', 'calls', 'involution', 'layer ms', '% of the network', 'operator ms', 'GB/s', '% of a copy'


def find_calls(model: nn.Module, shape: Sequence[int]) -> dict[Call, int]:
    """Groups equal calls of a model's involution layers. Returns the first call and the size of each group.

    The toolbox's model is on the meta device. ``shape`` is that of the images, (N, C, H, W). ValueError is raised if
    the model has no involution layer, or calls none.
    """
    if not any(isinstance(layer, Involution) for layer in model.modules()):
        raise ValueError(
            'the model has no involution layer: give a config with a RedNet, an InvolutionFPN or an involution head'
        )
    calls = record_calls(model, partial(run_model, model, torch.empty(*shape, device='meta')))
    if not calls:
        raise ValueError('the model calls none of its involution layers for an image')
    equal: dict[tuple, list[Call]] = {}
    for call in calls:
        equal.setdefault(call[1:], []).append(call)
    return {group[0]: len(group) for group in equal.values()}


def benchmark_layers(config: Any, shape: Sequence[int], setting: Setting, budget: float = 5.0) -> str:
    """Times the involution layers of a config's model in inference, each alone, and the whole model.

    ``shape`` is that of the images, (N, C, H, W), and ``budget`` is in seconds for all measurements. Returns Markdown
    with one row for each kind of call.
    """
    device = torch.device(setting.device)
    calls = find_calls(build_model(config), shape)
    model = toolboxes.build_model(config, config.filename, None).eval()
    model = model.to(device, memory_format=setting.memory_format)  # type: ignore[call-overload]
    chosen, reasons = explain(device)

    def step(function: Callable, size: Sequence[int]) -> Step:
        images = replace(setting, dtype=torch.float32).randn(*size)

        def infer() -> None:
            with torch.no_grad(), setting.autocast():
                function(images)

        return infer

    problems = {call: Problem(call.case, **{**vars(setting), 'batch': call.shape[0]}) for call in calls}
    steps = {'network': step(partial(run_model, model), shape)}
    for call, problem in problems.items():
        steps[f'layer {call.layer}'] = step(model.get_submodule(call.layer), call.shape)
        steps[f'operator {call.layer}'] = operator_step(chosen, problem)
        steps[f'floor {call.layer}'] = operator_step('floor', problem)
    times = {result.candidate: result for result in time_results(steps, {}, device, budget)}
    about = {'images': 'x'.join(map(str, shape)), **describe_machine(device)}
    return '\n\n'.join(
        [markdown_list(about), markdown_table(('backend', 'here'), reasons), *_table(calls, problems, times)]
    )


def _table(calls: dict[Call, int], problems: dict[Call, Problem], times: dict[str, Result]) -> tuple[str, str]:
    network, rows, total = times['network'].median, [], 0.0
    for call, count in calls.items():
        layer, alone, floor = (times[f'{what} {call.layer}'].median for what in ('layer', 'operator', 'floor'))
        total += count * layer
        numbers = layer, 100 * count * layer / network, alone, problems[call].moved_bytes / alone / 1e6
        involution = f'{call.shape[0]}x{call.case}'
        rows.append((call.layer, count, involution, *map(rounded, numbers), f'{100 * floor / alone:.0f}'))
    return (
        markdown_table(HEADER, rows, (1, *range(3, len(HEADER)))),
        f'{sum(calls.values())} calls of involution layers, kernel generation included, take {rounded(total)} ms, each '
        f'timed alone. That is {100 * total / network:.0f}% of the {rounded(network)} ms that the network takes.',
    )
