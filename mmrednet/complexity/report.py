"""Our models' parameters and FLOPs beside the paper's, as text."""

from collections.abc import Mapping

from ..formatting import format_records, markdown_table
from .tables import Complexity, Row

COLUMNS = (
    *('Table', 'Model', 'Parameters (M)', 'paper', 'difference'),
    *('FLOPs (G)', 'paper', 'difference', 'Why'),
)
CONVENTION = """\
FLOPs are multiply-adds, and one per output for a bias, two per normalised element, one per ReLU output or pool input.
Tables 1 and 6, and networks of Figure 2 that are not in Table 1 (F2): 224x224.
Table 3: 1280x800, 1000 proposals, 100 masks, trained parameters only (frozen_stages=1). Tables 4 and 5: 2048x1024.
The paper rounds some parameters twice, to two decimals and then to one, ties to even:
it prints 44.549 M as 44.6 and 25.653 M as 25.6."""


def format_comparison(results: Mapping[Row, Complexity], style: str) -> str:
    """Formats rows of the paper beside what our models count, as :func:`.format_records` does."""
    records = []
    for row, complexity in results.items():
        params, flops = complexity.params / 1e6, complexity.flops / 1e9
        records.append(
            {
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
        )
    table = markdown_table(COLUMNS, [[*record.values()] for record in records], range(2, len(COLUMNS) - 1))
    return format_records(records, f'{table}\n\n{CONVENTION}', style)
