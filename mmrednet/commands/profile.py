"""What computes an involution of one's own, how long that takes, and what else there is; or all those of a network."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from ..environment import find_device
from ..errors import one_line
from ..requirements import require
from ..toolboxes import enter_scope, quiet, read_config
from . import CommandError

if TYPE_CHECKING:
    import torch

    from ..benchmark.candidates import Case

LARGEST = 4 << 30  # bytes: unfold, which copies the input K x K times, is left out above that


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add = parser.add_argument
    add('--input', nargs=4, type=int, required=True, metavar=('N', 'C', 'H', 'W'), help="the input's shape")
    add('--kernel-size', nargs='+', type=int, metavar='K', help='one or two odd numbers (default: 7)')
    add('--stride', nargs='+', type=int, metavar='S', help='one or two (default: 1)')
    add('--dilation', nargs='+', type=int, metavar='D', help='one or two (default: 1)')
    add('--groups', type=int, metavar='G', help='default: one for every 16 channels')
    add('--dtype', choices=('float32', 'bfloat16', 'float16', 'float64'), default='float32', help='default: float32')
    add('--device', metavar='D', help='cpu, cuda or cuda:1 (default: a GPU where there is one)')
    add('--channels-last', action='store_true', help='the tensors are channels-last')
    add('--compiled', action='store_true', help="torch.compile's of the plain formula too: takes minutes")
    add(
        '--network',
        metavar='CONFIG',
        help='all involutions of the model of a config, its path or name, on images of the shape --input',
    )
    add('--budget', type=float, default=5, metavar='S', help='seconds for a table (default: 5)')


def run(args: argparse.Namespace) -> None:
    """Prints what it finds."""
    import torch

    device = find_device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    if min(args.input) < 1:
        raise CommandError(f'--input must be four positive numbers, N C H W, but is {args.input}')
    dtype = getattr(torch, args.dtype)
    try:
        text = (_network if args.network else _operator)(args, device, dtype)
    except CommandError:
        raise
    except Exception as error:  # of memory, of a config, which can name anything
        raise CommandError(one_line(error)) from error
    print('\n\n'.join(text))


def _operator(args: argparse.Namespace, device: 'torch.device', dtype: 'torch.dtype') -> list[str]:
    import torch

    from ..benchmark.candidates import Case, bytes_moved, working_backends
    from ..benchmark.measure import FORMS, GENERATING, time_candidates
    from ..benchmark.report import describe_machine, markdown_table, rounded
    from ..ops.backends import explain

    batch, channels, *size = args.input
    kernel_size = _pair('--kernel-size', args.kernel_size or [7])
    if kernel_size[0] % 2 == 0 or kernel_size[1] % 2 == 0:
        raise CommandError(f'--kernel-size must be odd, but is {args.kernel_size}')
    stride, dilation = _pair('--stride', args.stride or [1]), _pair('--dilation', args.dilation or [1])
    if args.groups is None and channels % 16:
        raise CommandError(f'the channels, {channels}, are no multiple of 16, which share a kernel: give --groups')
    groups = channels // 16 if args.groups is None else args.groups
    if groups < 1 or channels % groups:
        raise CommandError(f'--groups must divide the channels, {channels}, but is {groups}')
    case = Case(channels, (size[0], size[1]), kernel_size, stride, groups, dilation)
    about = {
        'involution': f'{case}, {groups} groups, batch {batch}, to {"x".join(map(str, case.output_size))} pixels',
        'tensors': f'{args.dtype}, {"channels-last" if args.channels_last else "contiguous"}, on {device}',
        **describe_machine(device),
    }
    chosen, tried = explain(device)
    text = ['\n'.join(f'- {name}: {value}' for name, value in about.items())]
    text.append(markdown_table(('backend', 'here'), tried))
    text += plan(chosen, case, batch, dtype, device, args.channels_last)
    others = [name for name in working_backends(device) if name != chosen]
    taken = batch * channels * case.kernel_size[0] * case.kernel_size[1] * case.output_size[0] * case.output_size[1]
    left_out = {}
    if taken * max(4, dtype.itemsize) > LARGEST:
        others.remove('reference')
        left_out['reference'] = f'its windows take {taken * max(4, dtype.itemsize) / 2**30:.1f} GiB'
    naive = ['naive'] if chosen == 'cuda' else []
    candidates = [chosen, 'floor', *others, *naive, 'depthwise', *GENERATING, *(FORMS if args.compiled else ())]
    rows: list[tuple[str, ...]] = []
    for phase in ('forward', 'backward'):
        if device.type == 'cuda':
            torch.backends.cudnn.benchmark = True
        results, missing = time_candidates(
            candidates, case, batch, dtype, device, args.channels_last, phase, args.budget / 2, (7, 100)
        )
        left_out |= missing
        floor = next((result for result in results if result.candidate == 'floor'), None)
        moved = bytes_moved(case, batch, dtype, phase)
        for r in sorted(results, key=lambda result: result.median):
            alike = r.candidate not in ('depthwise', *GENERATING)  # these move other bytes
            rate = [rounded(moved / r.median / 1e6) if alike else '']
            rate.append(f'{100 * floor.median / r.median:.0f}' if alike and floor else '')
            rows.append((phase, _title(r.candidate), rounded(r.median), f'{r.iqr:.2g}', *rate))
        text.append(f'{phase}: at least {moved / 2**20:.1f} MiB to read and write')
    text.append(markdown_table(('pass', 'what', 'ms', 'IQR', 'GB/s', '% of a copy'), rows, range(2, 6)))
    text += [f'{name} was left out: {reason}' for name, reason in left_out.items()]
    if not args.compiled:
        text.append('--compiled measures what torch.compile makes of the plain formula, too, in some minutes.')
    return text


def _pair(name: str, values: Sequence[int]) -> tuple[int, int]:
    if len(values) > 2 or min(values) < 1:
        raise CommandError(f'{name} must be one or two positive numbers, but is {values}')
    return values[0], values[-1]


def _title(candidate: str) -> str:
    titles = {
        'floor': 'a copy of the bytes',
        'reference': 'reference (unfold)',
        'naive': 'straightforward CUDA kernels',
        'depthwise': 'depthwise convolution',
        'apart': 'with kernel generation from C / 4 channels, one after the other',
        'fused': 'with kernel generation from C / 4 channels, fused',
        'compiled unfold': 'torch.compile of unfold',
        'compiled taps': 'torch.compile of the sum over taps',
    }
    return titles.get(candidate, f'backend {candidate}')


def plan(
    backend: str, case: 'Case', batch: int, dtype: 'torch.dtype', device: 'torch.device', channels_last: bool
) -> list[str]:
    """Returns lines about the kernels of a backend that run, and how they are launched."""
    import torch

    from ..ops.backends import find

    module: Any = find(backend, device)
    if hasattr(module, 'describe'):
        geometry = case.kernel_size, case.stride, case.padding, case.dilation
        return module.describe(batch, case.channels, case.size, *geometry, case.groups, dtype, device, channels_last)
    if backend == 'cuda':
        index = torch.cuda.current_device() if device.index is None else device.index
        return cuda_plan(case, batch, dtype, channels_last, module._device(index))
    return []


def cuda_plan(case: 'Case', batch: int, dtype: 'torch.dtype', channels_last: bool, limits: Any) -> list[str]:
    """Returns lines that say how the CUDA kernels are launched on a GPU of these limits. It needs no GPU."""
    import torch

    from ..ops.backends.cuda.plan import Layout, plan_launch

    def layout(*shape: int) -> Layout:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return Layout.of(torch.empty(shape, dtype=dtype, device='meta', memory_format=memory_format))

    taps = case.kernel_size[0] * case.kernel_size[1]
    x, y = layout(batch, case.channels, *case.size), layout(batch, case.channels, *case.output_size)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    made = torch.empty(
        batch, case.groups * taps, *case.output_size, dtype=dtype, device='meta', memory_format=memory_format
    )
    k = Layout.of(made.unflatten(1, (case.groups, *case.kernel_size)))
    lines = []
    for function in ('forward', 'grad_input', 'grad_kernel'):
        launch = plan_launch(function, x, k, y, case.stride, case.padding, case.dilation, limits)
        if launch is None:
            lines.append(f'- {function}: no kernel, since shared memory cannot hold a window: backend torch computes')
            continue
        special = ', '.join(f'{n} {v}' for n, v in asdict(launch.specialisation).items() if n != 'dtype')
        lines.append(
            f'- {function}: {launch.grid} blocks of {launch.block} threads, {launch.shared / 1024:.1f} KiB of shared '
            f'memory each; compiled for {special}'
        )
    return ['kernels in CUDA:\n\n' + '\n'.join(lines)]


def _network(args: argparse.Namespace, device: 'torch.device', dtype: 'torch.dtype') -> list[str]:
    for name in ('kernel_size', 'stride', 'dilation', 'groups', 'compiled'):
        if getattr(args, name):
            option = f'--{name.replace("_", "-")}'
            raise CommandError(f'{option} is for one involution: leave it out, or leave out --network')
    require('mmengine')
    with quiet():
        config = read_config(args.network)
        enter_scope(config, args.network)
        return profile_network(config, args.input, dtype, device, args.channels_last, args.budget)


def profile_network(
    config: Any,
    shape: Sequence[int],
    dtype: 'torch.dtype',
    device: 'torch.device',
    channels_last: bool = False,
    budget: float = 5.0,
) -> list[str]:
    """Returns paragraphs on the time of a network's involutions in inference, beside that of the network.

    Args:
        config (Config): A config of mmpretrain, mmdet or mmseg.
        shape (Sequence[int]): Of the images, (N, C, H, W).
        dtype (torch.dtype): Of autocast; float32 is without autocast.
        device (torch.device): Where it runs.
        channels_last (bool): Whether weights and images are channels-last. Defaults to False.
        budget (float): Seconds, as in :func:`.time_in_turns`. Defaults to 5.
    """
    import torch

    from ..benchmark.candidates import bytes_moved, initialise, layer_case, operator_step
    from ..benchmark.report import describe_machine, markdown_table, rounded
    from ..benchmark.timing import Result, time_in_turns
    from ..complexity.tables import build_model, run_model
    from ..layers import Involution
    from ..ops.backends import explain

    model = build_model(config)
    found: dict[tuple, list[tuple[str, tuple[int, ...]]]] = {}  # of each kind of call the layers' names and inputs

    def see(name: str, layer: Any, given: tuple, out: Any) -> None:
        seen = tuple(given[0].shape)
        kind = layer_case(layer, (seen[2], seen[3])), seen[0], layer.in_channels
        found.setdefault(kind, []).append((name, seen))

    hooks = [
        layer.register_forward_hook(partial(see, name))
        for name, layer in model.named_modules()
        if isinstance(layer, Involution)
    ]
    if not hooks:
        raise CommandError(
            'the network has no involution: give a config with a RedNet, an InvolutionFPN or such a head'
        )
    with torch.no_grad():
        run_model(model, torch.empty(*shape, device='meta'))
    for hook in hooks:
        hook.remove()
    if not found:
        raise CommandError("none of the network's involutions runs on images")

    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = initialise(model, device).to(memory_format=memory_format).eval()  # type: ignore[call-overload]
    layers = dict(model.named_modules())

    def step(function: Any, *size: int) -> Any:
        values = torch.randn(size, device=device).to(memory_format=memory_format)

        def infer() -> None:
            with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                function(values)

        return infer

    steps = {'network': step(partial(run_model, model), *shape)}
    for i, ((case, batch, _), calls) in enumerate(found.items()):
        setting = (case, batch, dtype, device, channels_last)
        name, seen = calls[0]
        steps[f'layer {i}'] = step(layers[name], *seen)
        steps[f'operator {i}'] = operator_step(explain(device)[0], *setting)
        steps[f'floor {i}'] = operator_step('floor', *setting)
    times = {
        name: Result({}, name, 'ms', tuple(1e3 * s for s in samples)).median
        for name, samples in time_in_turns(steps, device, budget, (7, 100)).items()
    }
    rows, total = [], 0.0
    for i, ((case, batch, _), calls) in enumerate(found.items()):
        layer, alone, floor = (times[f'{what} {i}'] for what in ('layer', 'operator', 'floor'))
        moved = bytes_moved(case, batch, dtype, 'forward')
        total += len(calls) * layer
        share = 100 * len(calls) * layer / times['network']
        figures = map(rounded, (layer, share, alone, moved / alone / 1e6))
        rows.append((calls[0][0], len(calls), f'{batch}x{case}', *figures, f'{100 * floor / alone:.0f}'))
    chosen, tried = explain(device)
    about = {'images': 'x'.join(map(str, shape)), **describe_machine(device)}
    header = ('first of', 'calls', 'involution', 'layer ms', '% of the network', 'operator ms', 'GB/s', '% of a copy')
    calls_in_all = sum(map(len, found.values()))
    return [
        '\n'.join(f'- {name}: {value}' for name, value in about.items()),
        markdown_table(('backend', 'here'), tried),
        markdown_table(header, rows, (1, *range(3, len(header)))),
        f'{calls_in_all} calls of involution layers, kernel generation included, take {rounded(total)} ms, each timed '
        f'alone: {100 * total / times["network"]:.0f}% of the {rounded(times["network"])} ms that the network takes.',
    ]
