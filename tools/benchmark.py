"""Measures time and memory of the operator and of networks as in Table 2, and networks in other runtimes."""

import argparse
import shlex
import sys
import warnings
from collections.abc import Iterator

import torch

from mmrednet.benchmark.candidates import MODELS, PHASES, RUNTIMES, fpn_case, rednet_cases
from mmrednet.benchmark.measure import benchmark_memory, benchmark_network, benchmark_operator, benchmark_runtimes
from mmrednet.benchmark.plot import plot_results, plot_roofline
from mmrednet.benchmark.report import FORMATS, describe_machine, format_results
from mmrednet.benchmark.timing import Result

DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}
# Batch sizes and types where the command line names none.
GPU_DEFAULTS = {
    'operator': ([64], list(DTYPES)),
    'network': ([64, 256], ['float32', 'bfloat16']),
    'memory': ([64], ['float32', 'bfloat16']),
}


def parse_args() -> argparse.Namespace:
    """Returns the command line's options."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--threads', type=int, help="threads on the CPU (default: torch's)")
    common.add_argument(
        '--batch', type=int, nargs='+', help='batch sizes (default: 1 8; on a GPU 64, networks also 256)'
    )
    common.add_argument('--budget', type=float, help='seconds for each row, where time is measured (default: 20)')
    common.add_argument('--quick', action='store_true', help='a small part of all, to see that it works')
    common.add_argument('--format', choices=FORMATS, default='markdown', help='default: %(default)s')
    common.add_argument('--plot', metavar='PATH', help='draw the result to PATH too')
    tensors = argparse.ArgumentParser(add_help=False, parents=[common])
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    tensors.add_argument('--device', type=torch.device, default=device, help='default: %(default)s')
    tensors.add_argument(
        '--dtype',
        nargs='+',
        choices=DTYPES,
        help='of the tensors; networks: of autocast, which is channels-last (default: float32; on a GPU others too)',
    )
    tensors.add_argument('--channels-last', action='store_true', help='channels-last in float32 too')
    models = argparse.ArgumentParser(add_help=False)
    models.add_argument(
        '--models',
        nargs='+',
        help="RedNet-50/reference has unfold, RedNet-50/fused keeps no kernels (default: Table 2's)",
    )

    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    operator = commands.add_parser(
        'operator', parents=[tensors], help="the operator at RedNet-50's and the FPN's shapes"
    )
    operator.add_argument(
        '--compiled', action='store_true', help="torch.compile's best of the plain formula too: minutes a row"
    )
    operator.add_argument('--roofline', metavar='PATH', help='draw times against the bytes moved to PATH too')
    network = commands.add_parser('network', parents=[tensors, models], help='whole networks, inference and training')
    network.add_argument('--phases', nargs='+', choices=PHASES, default=PHASES, help='default: all')
    commands.add_parser('memory', parents=[tensors, models], help='peak memory of the operator and of networks')
    runtimes = commands.add_parser(
        'runtimes', parents=[common], help='ResNet-50 and RedNet-50 on the CPU in PyTorch, ONNX Runtime and OpenVINO'
    )
    runtimes.add_argument('--runtimes', nargs='+', choices=RUNTIMES, default=list(RUNTIMES), help='default: all')
    runtimes.set_defaults(device=torch.device('cpu'), dtype=None, channels_last=False)
    return parser.parse_args()


def main() -> None:
    """Measures, and prints and draws the results."""
    args = parse_args()
    # The toolboxes' own deprecations.
    warnings.simplefilter('ignore')
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device.type == 'cuda':
        torch.backends.cudnn.benchmark = True
    args.budget = args.budget or (0.2 if args.quick else 20)
    args.batch = args.batch or ([1] if args.quick else None)
    if 'models' in args:
        args.models = args.models or (('ResNet-50', 'RedNet-50') if args.quick else MODELS)
    results = []
    for result in measure(args):
        results.append(result)
        setting = ', '.join(map(str, result.labels.values()))
        print(f'{result.candidate}: {result.median:.3g} {result.unit} ({setting})', file=sys.stderr)

    command = shlex.join(['python', 'tools/benchmark.py', *sys.argv[1:]])
    packages = ('onnxruntime', 'openvino') if args.command == 'runtimes' else ()
    print(format_results(results, args.format, {'command': command, **describe_machine(args.device, packages)}))
    if args.plot:
        plot_results(results, args.plot)
    if getattr(args, 'roofline', None):
        plot_roofline(results, args.roofline)


def measure(args: argparse.Namespace) -> Iterator[Result]:
    """Yields what the command line asks for."""
    gpu = args.device.type == 'cuda'
    shapes = rednet_cases()
    levels = [fpn_case(size) for size in ((800, 800), (800, 1280))[: 1 + gpu]]
    if args.quick:
        shapes, levels = shapes[:2], []
    batches, names = GPU_DEFAULTS[args.command] if gpu else ([1, 8], ['float32'])
    batches, dtypes = args.batch or batches, [DTYPES[name] for name in args.dtype or names]
    device, last = args.device, args.channels_last
    if args.command == 'operator':
        for cases, sizes in ((shapes, batches), (levels, [1])):
            yield from benchmark_operator(cases, sizes, dtypes, device, last, args.budget, args.compiled)
    elif args.command == 'network':
        yield from benchmark_network(args.models, batches, dtypes, device, last, args.phases, args.budget)
    elif args.command == 'runtimes':
        yield from benchmark_runtimes(batches=batches, runtimes=args.runtimes, budget=args.budget)
    else:
        # The trunk's first involution has the most pixels.
        cases = {shapes[1]: batches[-1], **dict.fromkeys(levels, 1)}
        yield from benchmark_memory(cases, args.models, batches, dtypes, device, last)


if __name__ == '__main__':
    main()
