"""Prints parameters and FLOPs of the models in the paper's Tables 1, 3, 4, 5 and 6 beside the paper's figures."""

import argparse
import sys
import warnings

from mmrednet.benchmark.plot import plot_complexity
from mmrednet.benchmark.report import FORMATS, format_records, markdown_table
from mmrednet.commands import CommandError
from mmrednet.commands.common import enter_scope, read_config
from mmrednet.complexity.tables import ROWS, measure, measure_config

COLUMNS = {
    'table': 'Table',
    'model': 'Model',
    'params': 'Parameters (M)',
    'paper_params': 'paper',
    'params_difference': 'difference',
    'flops': 'FLOPs (G)',
    'paper_flops': 'paper',
    'flops_difference': 'difference',
    'note': 'Why',
}
CONVENTION = """\
FLOPs are multiply-adds, and one per output for a bias, two per normalised element, one per ReLU output or pool input.
Tables 1 and 6: 224x224. Table 3: 1280x800, 1000 proposals, 100 masks, trained parameters only (frozen_stages=1).
Tables 4 and 5: 2048x1024. Some of the paper's parameters are rounded to two digits before,
ties to even: it prints 44.549 M as 44.6 and 25.653 M as 25.6."""


def parse_args() -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    tables = sorted({row.table[0] for row in ROWS})
    parser.add_argument('--table', nargs='+', choices=tables, default=tables, help='tables to print (default: all)')
    parser.add_argument('--format', choices=FORMATS, default='markdown', help='of the tables (default: markdown)')
    other = parser.add_mutually_exclusive_group()
    other.add_argument('--plot', metavar='PATH', help='draw Figure 2 to PATH, as PNG and SVG, and print no tables')
    other.add_argument('--config', help='count the model of this config, its path or name, and print no tables')
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        default=(224, 224),
        metavar=('HEIGHT', 'WIDTH'),
        help='image for --config (224 224)',
    )
    return parser.parse_args()


def to_record(row, complexity) -> dict:
    """Returns a row of the comparison, in millions and units of 10^9."""
    params, flops = complexity.params / 1e6, complexity.flops / 1e9
    return {
        'table': row.table,
        'model': row.model,
        'params': round(params, 3),
        'paper_params': row.params,
        'params_difference': f'{params / row.params - 1:+.1%}',
        'flops': round(flops, 2),
        'paper_flops': row.flops,
        'flops_difference': f'{flops / row.flops - 1:+.1%}',
        'note': row.note,
    }


def main() -> None:
    """Counts, and prints or draws."""
    args = parse_args()
    # The toolboxes' own deprecations.
    warnings.simplefilter('ignore')
    if args.config:
        try:
            config = read_config(args.config)
            enter_scope(config, args.config)
        except CommandError as error:
            sys.exit(str(error))
        complexity = measure_config(config, *args.shape)
        size = 'x'.join(map(str, args.shape))
        print(f'{complexity.params / 1e6:.3f} M parameters, {complexity.flops / 1e9:.2f} G FLOPs at {size}')
        return
    rows = [row for row in ROWS if row.table[0] in ('1' if args.plot else args.table)]
    results = {row: measure(row) for row in rows}
    if args.plot:
        print('\n'.join(map(str, plot_complexity(results, args.plot))))
    else:
        records = [to_record(*item) for item in results.items()]
        # All columns but the first two and the last are figures.
        figures = range(2, len(COLUMNS) - 1)
        table = markdown_table([*COLUMNS.values()], [[*record.values()] for record in records], figures)
        print(format_records(records, f'{table}\n\n{CONVENTION}', args.format))


if __name__ == '__main__':
    main()
