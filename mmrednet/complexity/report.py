"""Our models' parameters and FLOPs beside the paper's, as text."""

from collections.abc import Mapping

from ..formatting import format_records, markdown_table
from .tables import Complexity, Row

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
Tables 4 and 5: 2048x1024. The paper rounds some parameters twice, first to two digits and ties to even:
it prints 44.549 M as 44.6 and 25.653 M as 25.6."""


def format_comparison(results: Mapping[Row, Complexity], style: str) -> str:
    """Formats rows of the paper beside what our models count.

    Args:
        results (Mapping[Row, Complexity]): The rows, and what :func:`.measure` returns for each.
        style (str): One of :data:`.formatting.FORMATS`.

    Raises:
        ValueError: There is no such format.
    """
    records = [to_record(*item) for item in results.items()]
    numbers = range(2, len(COLUMNS) - 1)
    table = markdown_table([*COLUMNS.values()], [[*record.values()] for record in records], numbers)
    return format_records(records, f'{table}\n\n{CONVENTION}', style)


def to_record(row: Row, complexity: Complexity) -> dict[str, str | float]:
    """Returns a row of the comparison, with the fields of ``COLUMNS``: millions of parameters and 10^9 FLOPs."""
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
