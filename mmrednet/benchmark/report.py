"""Measurements as Markdown, CSV and JSON. It needs torch alone."""

from collections.abc import Mapping, Sequence

from ..formatting import format_records, markdown_table, rounded
from ..ops.backends import TABLE
from .timing import Result, by_case


def format_results(results: Sequence[Result], style: str, about: Mapping[str, str] = {}) -> str:
    """Formats measurements as :func:`.format_records` does.

    CSV and JSON have one record for each setting and candidate. Markdown has one row for each setting, and one table
    for each set of candidates. The column of a candidate shows the median and, in brackets, the interquartile range.
    The last columns are ratios of medians.

    Args:
        results (Sequence[Result]): The measurements.
        style (str): One of :data:`.formatting.FORMATS`.
        about (Mapping[str, str]): Facts that stand before the measurements. Defaults to nothing.

    Raises:
        ValueError: There is no such format.
    """
    records = [
        {
            **r.labels,
            'candidate': r.candidate,
            'unit': r.unit,
            'median': r.median,
            'iqr': r.iqr,
            'samples': len(r.samples),
            **({} if r.bytes is None else {'bytes': r.bytes}),
        }
        for r in results
    ]
    tables: dict[tuple, list[tuple]] = {}
    for case in by_case(results):
        labels, ratios = case[0].labels, _ratios(case)
        rows = tables.setdefault((len(labels), *labels, *(r.candidate for r in case), *ratios), [])
        rows.append((*labels.values(), *map(_cell, case), *ratios.values()))
    markdown = [markdown_table(header, rows, range(labels, len(header))) for (labels, *header), rows in tables.items()]
    return format_records(records, '\n\n'.join(markdown), style, about)


def _ratios(case: Sequence[Result]) -> dict[str, str]:
    """Returns the ratios of medians that a table shows."""
    medians = {result.candidate: result.median for result in case}
    # The backends for one type of device have native kernels.
    native = [name for name, row in TABLE.items() if row.devices]
    pairs = [(name, 'floor') for name in native]
    pairs += [(other, name) for other in ('reference', 'naive', 'compiled') for name in native]
    pairs += [('fused', 'unfused'), ('RedNet-50', 'ResNet-50'), ('RedNet-101', 'ResNet-101')]
    return {f'{a} / {b}': rounded(medians[a] / medians[b]) for a, b in pairs if a in medians and b in medians}


def _cell(result: Result) -> str:
    spread = f' ({result.iqr:.2g})' if len(result.samples) > 1 else ''
    return f'{rounded(result.median)}{spread}'
