"""Measures the time and memory of the operator and of networks."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..environment import describe_machine, find_device
from ..formatting import FORMATS
from ..requirements import require
from .common import add_traceback, to_count

if TYPE_CHECKING:
    import torch

    from ..benchmark.timing import Result, Setting

DTYPES = ('float32', 'bfloat16', 'float16', 'float64')
OPTIONS = ('channels_last', 'models', 'budget', 'quick', 'compiled', 'phases', 'runtimes')  # of `run_suite`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    time, place, table, models = (argparse.ArgumentParser(add_help=False) for _ in range(4))
    add = time.add_argument
    add('--threads', type=to_count, metavar='N', help="threads on the CPU (default: torch's)")
    add(
        '--budget',
        type=float,
        metavar='S',
        help='seconds for a row (default: 20), or in involution and layers for the whole report (default: 5)',
    )
    add_traceback(time)
    add = place.add_argument
    add('--device', metavar='D', help='cpu, cuda or cuda:1 (default: a GPU if there is one)')
    add('--dtype', nargs='+', choices=DTYPES, help='dtypes of tensors or autocast (default: float32; more on a GPU)')
    add('--channels-last', action='store_true', help='use channels-last in float32, too')
    add = table.add_argument
    add(
        '--batch',
        nargs='+',
        type=to_count,
        metavar='N',
        help='batch sizes (default: 1 8, attention and dimensions 2; on a GPU 64, networks 64 256)',
    )
    add('--quick', action='store_true', help='measure a small part with few samples, to try the command')
    add('--format', choices=FORMATS, default='markdown', help='default: markdown')
    add('--plot', metavar='FILE', help='also draw the results to FILE')
    names = "default: those of the paper's Table 2; RedNet-50/reference uses unfold, RedNet-50/fused stores no kernels"
    models.add_argument('--models', nargs='+', metavar='M', help=names)

    subparsers = parser.add_subparsers(dest='what', metavar='WHAT', required=True)
    parsers = {
        name: subparsers.add_parser(name, parents=parents, help=help, description=f'Measures {help}.').add_argument
        for name, help, parents in (
            ('operator', 'the time of the operator at the shapes of RedNet-50 and the FPN', (time, place, table)),
            ('network', 'the time of ResNets and RedNets in inference and training', (time, place, table, models)),
            ('memory', 'the peak memory of the operator and of networks', (time, place, table, models)),
            ('attention', 'local attention and other ways to compute it: time and memory', (time, place, table)),
            ('dimensions', 'involution in one and three dimensions beside `unfold`', (time, place, table)),
            ('runtimes', 'ResNet-50 and RedNet-50 on the CPU in PyTorch, ONNX Runtime and OpenVINO', (time, table)),
            ('involution', 'one involution of your sizes, in all backends and beside convolutions', (time, place)),
            ('layers', 'all involution layers of the model of a config', (time, place)),
        )
    }
    for name in ('operator', 'involution', 'attention'):
        parsers[name]('--compiled', action='store_true', help='also measure compiled PyTorch code (takes minutes)')
    parsers['network']('--phases', nargs='+', metavar='P', help="'inference', 'inference, BN folded', 'training'")
    parsers['runtimes']('--runtimes', nargs='+', metavar='R', help='default: all')
    four: Any = dict(nargs=4, type=to_count, metavar=('N', 'C', 'H', 'W'))
    add = parsers['involution']
    add('--input', required=True, help='shape of the input', **four)
    add('--kernel-size', nargs='+', type=int, default=[7], metavar='K', help='one or two odd numbers (default: 7)')
    for name in ('stride', 'dilation'):
        add(f'--{name}', nargs='+', type=int, default=[1], metavar='S', help='one or two numbers (default: 1)')
    add('--groups', type=int, metavar='G', help='default: one group for every 16 channels')
    add = parsers['layers']
    add('config', help='path or name of a config of mmpretrain, mmdet or mmseg')
    add('--input', default=[1, 3, 224, 224], help='shape of the images (default: 1 3 224 224)', **four)


def run(args: argparse.Namespace) -> None:
    """Measures, and prints and draws the results."""
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # deprecations inside the toolboxes
        measure = {'involution': _involution, 'layers': _layers}.get(args.what, _suite)
        print(measure(args))


def _suite(args: argparse.Namespace) -> str:
    from ..benchmark.plot import plot_results
    from ..benchmark.report import format_results
    from ..benchmark.suites import run_suite

    given = vars(args)
    device = find_device('cpu' if args.what == 'runtimes' else args.device)
    options = {name: given[name] for name in OPTIONS if name in given}
    results: list[Result] = []
    for result in run_suite(args.what, device, args.batch, _dtypes(given.get('dtype') or ()), **options):
        results.append(result)
        setting = ', '.join(map(str, result.labels.values()))
        print(f'{result.candidate}: {result.median:.3g} {result.unit} ({setting})', file=sys.stderr)
    packages = ('onnxruntime', 'openvino') if args.what == 'runtimes' else ()
    about = {'command': args.command_line, **describe_machine(device, packages)}
    if args.plot:
        plot_results(results, args.plot)
    return format_results(results, args.format, about)


def _involution(args: argparse.Namespace) -> str:
    from ..benchmark.candidates import Problem
    from ..benchmark.involution import benchmark_involution, make_case

    batch, channels, height, width = args.input
    kernel_size, stride, dilation = (
        pair[0] if len(pair) == 1 else pair for pair in (args.kernel_size, args.stride, args.dilation)
    )
    case = make_case(channels, (height, width), kernel_size, stride, dilation, args.groups)
    problems = [Problem(case, **vars(setting)) for setting in _settings(args, batch)]
    return '\n\n'.join(benchmark_involution(problem, _seconds(args), args.compiled) for problem in problems)


def _layers(args: argparse.Namespace) -> str:
    require('mmengine')
    from ..benchmark.layers import benchmark_layers
    from ..toolboxes import enter_scope, quiet, read_config

    settings = _settings(args, args.input[0])
    with quiet():
        config = read_config(args.config)
        enter_scope(config, args.config)
        return '\n\n'.join(benchmark_layers(config, args.input, setting, _seconds(args)) for setting in settings)


def _settings(args: argparse.Namespace, batch: int) -> 'list[Setting]':
    from ..benchmark.timing import Setting

    place: Any = dict(batch=batch, device=find_device(args.device), channels_last=args.channels_last)
    return [Setting(dtype=dtype, **place) for dtype in _dtypes(args.dtype or DTYPES[:1])]


def _seconds(args: argparse.Namespace) -> float:
    return 5.0 if args.budget is None else args.budget


def _dtypes(names: Sequence[str]) -> 'list[torch.dtype]':
    import torch

    return [getattr(torch, name) for name in names]
