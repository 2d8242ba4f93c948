"""Writes the model of a config as a file for another runtime, and compares the file with PyTorch."""

import argparse

from ..requirements import require
from .common import to_count, to_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    from ..export import DTYPES, FORMATS

    add = parser.add_argument
    add('config', metavar='CONFIG', help='the config of a classifier, a detector or a segmentor, or its name')
    add('checkpoint', nargs='?', metavar='CHECKPOINT', help='a file or URL with the weights (default: random weights)')
    add('--format', choices=FORMATS, required=True, help='the file format')
    add('--out', type=to_path, metavar='F', required=True, help='the file to write, with the ending of its format')
    add(
        '--size',
        type=to_count,
        nargs=2,
        default=(224, 224),
        metavar=('H', 'W'),
        help='height and width of the check; the file takes images of any size (default: 224 224)',
    )
    add('--dtype', choices=DTYPES, default='float32', help='of weights, images and outputs (default: float32)')


def run(args: argparse.Namespace) -> None:
    """Exports, checks, and prints the differences and both run times."""
    require('mmengine')
    from ..export import DTYPES, ExportableModel, check_format, export_checked
    from ..export.model import fill_zeroed_norms
    from ..toolboxes import build_model, quiet, read_config

    # Before the model is built, which can take minutes.
    check_format(args.format, args.out)
    with quiet():
        model = build_model(read_config(args.config), args.config, args.checkpoint)
        if args.checkpoint is None:
            fill_zeroed_norms(model)
        network = ExportableModel(model).to(DTYPES[args.dtype])
        found = export_checked(network, args.format, args.out, tuple(args.size))
    print(f'{"images":>16}  {"difference":>10}  {"PyTorch":>10}  {args.format:>12}')
    for comparison in found:
        shape = 'x'.join(map(str, comparison.shape))
        times = f'{comparison.pytorch * 1e3:7.1f} ms  {comparison.exported * 1e3:9.1f} ms'
        print(f'{shape:>16}  {comparison.difference:10.1e}  {times}')
    print(args.out)
