"""The curves of training runs in one picture."""

import argparse
from io import BytesIO

from . import CommandError
from .common import one_line, to_path, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add = parser.add_argument
    add('runs', nargs='+', metavar='WORK_DIR', help="a run's work_dir, or a JSON log of mmengine's")
    add('--names', nargs='+', default=[], metavar='NAME', help='which curves (default: the loss and AP, mIoU or top-1)')
    add('--out', type=to_path, required=True, metavar='F.png', help='the picture to write')


def run(args: argparse.Namespace) -> None:
    """Draws."""
    from ..analysis.curves import draw_curves, read_curves

    kind = args.out.suffix.lstrip('.')
    if kind not in ('png', 'svg', 'pdf'):
        raise CommandError(f'--out is {args.out}: give it the ending .png, .svg or .pdf')
    try:
        figure = draw_curves({run: read_curves(run) for run in args.runs}, args.names)
    except (ImportError, OSError, ValueError) as error:
        raise CommandError(one_line(error)) from error
    data = BytesIO()
    figure.savefig(data, format=kind)
    write(args.out, data.getvalue())
