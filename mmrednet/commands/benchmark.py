"""Measures the time and memory of the operator and of networks."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..environment import describe_machine, find_device
from ..formatting import FORMATS
from .common import add_traceback, to_count

if TYPE_CHECKING:
    import torch

    from ..benchmark.timing import Result

DTYPES = ('float32', 'bfloat16', 'float16', 'float64')
OPTIONS = ('batches', 'channels_last', 'quick', 'models', 'compiled', 'phases')  # of `run_suite`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    all_parsers, suite, models = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    add = all_parsers.add_argument
    add('--threads', type=to_count, metavar='N', help="threads on the CPU (default: torch's)")
    seconds = 'seconds for a row, or in involution for the whole report (default: 10)'
    add('--budget', type=float, default=10.0, metavar='S', help=seconds)
    add('--device', metavar='D', help='cpu, cuda or cuda:1 (default: a GPU if there is one)')
    dtypes = 'dtypes of tensors or autocast (default: float32; more on a GPU)'
    add('--dtype', nargs='+', default=(), choices=DTYPES, help=dtypes)
    add('--channels-last', action='store_true', help='use channels-last in float32, too')
    add_traceback(all_parsers)
    add = suite.add_argument
    batches = 'batch sizes (default: 1 8, attention and dimensions 2; on a GPU 64, networks 64 256)'
    add('--batch', dest='batches', nargs='+', type=to_count, default=(), metavar='N', help=batches)
    add('--quick', action='store_true', help='measure a small part with few samples, to try the command')
    add('--format', choices=FORMATS, default='markdown', help='default: markdown')
    add('--plot', metavar='FILE', help='also draw the results to FILE')
    names = "default: those of the paper's Table 2; RedNet-50/reference uses unfold, RedNet-50/fused stores no kernels"
    models.add_argument('--models', nargs='+', default=(), metavar='M', help=names)

    subparsers = parser.add_subparsers(dest='what', metavar='WHAT', required=True)
    parsers = {
        name: subparsers.add_parser(name, parents=parents, help=help, description=f'Measures {help}.').add_argument
        for name, help, parents in (
            ('operator', 'the time of the operator at the shapes of RedNet-50 and the FPN', (all_parsers, suite)),
            ('network', 'the time of ResNets and RedNets in inference and training', (all_parsers, suite, models)),
            ('memory', 'the peak memory of the operator and of networks', (all_parsers, suite, models)),
            ('attention', 'local attention and other ways to compute it: time and memory', (all_parsers, suite)),
            ('dimensions', 'involution in one and three dimensions beside `unfold`', (all_parsers, suite)),
            ('involution', 'one involution of your sizes, in all backends and beside convolutions', (all_parsers,)),
        )
    }
    for name in ('attention', 'involution'):
        parsers[name]('--compiled', action='store_true', help='also measure compiled PyTorch code (takes minutes)')
    phases = "'inference', 'inference, BN folded', 'training' (default: all)"
    parsers['network']('--phases', nargs='+', default=argparse.SUPPRESS, metavar='P', help=phases)
    add = parsers['involution']
    shape = ('N', 'C', 'H', 'W')
    add('--input', nargs=4, type=to_count, required=True, metavar=shape, help='shape of the input')
    add('--kernel-size', nargs='+', type=int, default=[7], metavar='K', help='one or two odd numbers (default: 7)')
    for name in ('stride', 'dilation'):
        add(f'--{name}', nargs='+', type=int, default=[1], metavar='S', help='one or two numbers (default: 1)')
    add('--groups', type=int, metavar='G', help='default: one group for every 16 channels')


def run(args: argparse.Namespace) -> None:
    """Measures, and prints and draws the results."""
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # deprecations inside the toolboxes
        print(_involution(args) if args.what == 'involution' else _suite(args))


def _suite(args: argparse.Namespace) -> str:
    from ..benchmark.plot import plot_results
    from ..benchmark.report import format_results
    from ..benchmark.suites import run_suite

    device, budget = find_device(args.device), 0.2 if args.quick else args.budget
    options = {name: value for name, value in vars(args).items() if name in OPTIONS}
    results: list[Result] = []
    for result in run_suite(args.what, device, budget, dtypes=_dtypes(args.dtype), **options):
        results.append(result)
        setting = ', '.join(map(str, result.labels.values()))
        print(f'{result.candidate}: {result.median:.3g} {result.unit} ({setting})', file=sys.stderr)
    if args.plot:
        plot_results(results, args.plot)
    return format_results(results, args.format, {'command': args.command_line, **describe_machine(device)})


def _involution(args: argparse.Namespace) -> str:
    from ..benchmark.candidates import Problem
    from ..benchmark.involution import benchmark_involution, make_case

    batch, channels, height, width = args.input
    kernel_size, stride, dilation = (
        pair[0] if len(pair) == 1 else pair for pair in (args.kernel_size, args.stride, args.dilation)
    )
    case = make_case(channels, (height, width), kernel_size, stride, dilation, args.groups)
    place: Any = dict(batch=batch, device=find_device(args.device), channels_last=args.channels_last)
    problems = [Problem(case, dtype=dtype, **place) for dtype in _dtypes(args.dtype or DTYPES[:1])]
    return '\n\n'.join(benchmark_involution(problem, args.budget, args.compiled) for problem in problems)


def _dtypes(names: Sequence[str]) -> 'list[torch.dtype]':
    import torch

    return [getattr(torch, name) for name in names]
