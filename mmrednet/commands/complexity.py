"""Counts parameters and FLOPs of the models in the paper's tables, or of the model of a config."""

import argparse
import warnings

from ..formatting import FORMATS
from ..requirements import require
from .common import to_count, to_path

TABLES = ('1', 'F2', '3', '4', '5', '6')  # F2: the networks of Figure 2 that are not in Table 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add = parser.add_argument
    add(
        '--table',
        nargs='+',
        choices=TABLES,
        default=TABLES,
        help='tables of the paper to print; F2: the rest of Figure 2 (default: all)',
    )
    add('--format', choices=FORMATS, default='markdown', help='default: markdown')
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        '--plot',
        type=to_path,
        metavar='FILE',
        help="draw the paper's Figure 2 to FILE as PNG and SVG, and print no table",
    )
    other.add_argument('--config', help='count the model of this config, a path or a name, and print no table')
    size = 'size of the image for --config in pixels (default: 224 224)'
    add('--shape', nargs=2, type=to_count, default=(224, 224), metavar=('HEIGHT', 'WIDTH'), help=size)


def run(args: argparse.Namespace) -> None:
    """Counts, and prints or draws the results."""
    require('mmengine')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # deprecations inside the toolboxes
        print(_config(args) if args.config else _tables(args))


def _config(args: argparse.Namespace) -> str:
    from ..complexity.tables import measure_config
    from ..toolboxes import enter_scope, read_config

    config = read_config(args.config)
    enter_scope(config, args.config)
    complexity = measure_config(config, *args.shape)
    size = 'x'.join(map(str, args.shape))
    return f'{complexity.params / 1e6:.3f} M parameters, {complexity.flops / 1e9:.2f} G FLOPs at {size}'


def _tables(args: argparse.Namespace) -> str:
    from ..complexity.plot import plot_complexity
    from ..complexity.report import format_comparison
    from ..complexity.tables import ROWS, measure

    tables = ('1', 'F2') if args.plot else tuple(args.table)
    results = {row: measure(row) for row in ROWS if row.table.startswith(tables)}
    if args.plot:
        return '\n'.join(map(str, plot_complexity(results, args.plot)))
    return format_comparison(results, args.format)
