"""Reports whether the operator is right on a GPU, and how fast it and RedNet are.

It needs torch and CuPy, and for the networks mmpretrain.
"""

import argparse
import os
import signal
import sys

from .common import to_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    help = 'the file for the report; F.json beside it has all measurements'
    parser.add_argument('--out', type=to_path, required=True, metavar='F.md', help=help)
    parser.add_argument('--quick', action='store_true', help='only the most important parts, in less than 3 minutes')


def run(args: argparse.Namespace) -> int:
    """Makes the report, and returns 1 if something is wrong."""
    import torch

    from ..gpu_report.report import make_report
    from ..ops.backends import find

    if not torch.cuda.is_available():
        raise ValueError('torch finds no GPU here, which this report needs: python -m mmrednet info shows why')
    device = torch.device('cuda', torch.cuda.current_device())
    find('cuda', device)  # an error names what is missing
    if args.out.suffix != '.md' or not os.access(args.out.absolute().parent, os.W_OK):
        raise ValueError(f'--out must be a file F.md in a folder that you can write to, but is {args.out}')
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the processes of the parts end, too
    faults = make_report(args.out, device, args.quick, {'command': args.command_line})
    print(args.out)
    return 1 if faults else 0
