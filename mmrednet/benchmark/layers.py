"""The time of all involution layers of a model. It needs the toolbox of the model's config."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..complexity.tables import build_model, run_model
from ..environment import describe_machine
from ..formatting import markdown_list, markdown_table, rounded
from ..layers import Involution
from ..ops.backends import explain
from .candidates import Problem, operator_step
from .cases import Case, layer_case
from .networks import initialise
from .timing import Result, Step, time_results


class Calls(NamedTuple):
    """Calls of a model's layers that compute the same involution from the same number of channels."""

    case: Case
    shape: tuple[int, ...]  # of the input, (N, C, H, W)
    layers: list[str]


def find_calls(model: nn.Module, shape: Sequence[int]) -> list[Calls]:
    """Returns the calls of a model's involution layers.

    Args:
        model (nn.Module): A model of mmpretrain, mmdet or mmseg on the meta device.
        shape (Sequence[int]): The shape of the images, (N, C, H, W).

    Raises:
        ValueError: The model has no involution layer, or none is called.
    """
    calls: dict[tuple, Calls] = {}

    def record(name: str, layer: Involution, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shape = tuple(inputs[0].shape)
        case = layer_case(layer, (shape[2], shape[3]))
        calls.setdefault((case, shape), Calls(case, shape, [])).layers.append(name)

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Involution)]
    if not layers:
        raise ValueError(
            'the model has no involution layer: give a config with a RedNet, an InvolutionFPN or such a head'
        )
    hooks = [layer.register_forward_hook(partial(record, name)) for name, layer in layers]
    with torch.no_grad():
        run_model(model, torch.empty(*shape, device='meta'))
    for hook in hooks:
        hook.remove()
    if not calls:
        raise ValueError('the model calls none of its involution layers for an image')
    return list(calls.values())


def benchmark_layers(
    config: Any,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = 'cpu',
    channels_last: bool = False,
    budget: float = 5.0,
) -> str:
    """Times the involution layers of a model in inference, each alone, and the whole model.

    Args:
        config (Config): A config of mmpretrain, mmdet or mmseg.
        shape (Sequence[int]): The shape of the images, (N, C, H, W).
        dtype (torch.dtype): The dtype of autocast. With float32, the default, autocast is off.
        device (str or torch.device): The device of the model. Defaults to 'cpu'.
        channels_last (bool): Whether weights and images are channels-last. Defaults to False.
        budget (float): Seconds for all measurements. Defaults to 5.

    Returns:
        str: Markdown with one row for each kind of call.

    Raises:
        ValueError: The model has no involution layer, or none is called.
    """
    device = torch.device(device)
    model = build_model(config)
    calls = find_calls(model, shape)
    memory_format: Any = torch.channels_last if channels_last else torch.contiguous_format
    model = initialise(model, device).to(memory_format=memory_format).eval()  # type: ignore[call-overload]
    layers = dict(model.named_modules())
    chosen, reasons = explain(device)

    def step(function: Callable, *size: int) -> Step:
        images = torch.randn(size, device=device).to(memory_format=memory_format)

        def infer() -> None:
            with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                function(images)

        return infer

    problems = [Problem(case, size[0], dtype, device, channels_last) for case, size, _ in calls]
    steps = {'network': step(partial(run_model, model), *shape)}
    for i, (problem, call) in enumerate(zip(problems, calls, strict=True)):
        steps[f'layer {i}'] = step(layers[call.layers[0]], *call.shape)
        steps[f'operator {i}'] = operator_step(chosen, problem)
        steps[f'floor {i}'] = operator_step('floor', problem)
    times = {result.candidate: result for result in time_results(steps, {}, device, budget)}
    return '\n\n'.join(
        [
            markdown_list({'images': 'x'.join(map(str, shape)), **describe_machine(device)}),
            markdown_table(('backend', 'here'), reasons),
            _table(calls, problems, times),
        ]
    )


def _table(calls: Sequence[Calls], problems: Sequence[Problem], times: dict[str, Result]) -> str:
    network, rows, total = times['network'].median, [], 0.0
    for i, (call, problem) in enumerate(zip(calls, problems, strict=True)):
        layer, alone, floor = (times[f'{what} {i}'].median for what in ('layer', 'operator', 'floor'))
        in_all = len(call.layers) * layer
        total += in_all
        numbers = map(rounded, (layer, 100 * in_all / network, alone, problem.moved_bytes / alone / 1e6))
        name, involution = call.layers[0], f'{problem.batch}x{call.case}'
        rows.append((name, len(call.layers), involution, *numbers, f'{100 * floor / alone:.0f}'))
    header = (
        'first layer',
        'calls',
        'involution',
        'layer ms',
        '% of the network',
        'operator ms',
        'GB/s',
        '% of a copy',
    )
    count = sum(len(call.layers) for call in calls)
    return (
        f'{markdown_table(header, rows, (1, *range(3, len(header))))}\n\n'
        f'{count} calls of involution layers, kernel generation included, take {rounded(total)} ms, each timed alone. '
        f'That is {100 * total / network:.0f}% of the {rounded(network)} ms that the network takes.'
    )
