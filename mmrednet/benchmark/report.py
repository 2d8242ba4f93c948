"""Measurements as Markdown, CSV and JSON. It needs torch alone."""

from collections.abc import Mapping, Sequence

from ..formatting import format_records, markdown_table, rounded
from ..ops.backends import TABLE
from .timing import Result, by_case


def format_results(results: Sequence[Result], style: str, about: Mapping[str, str] = {}) -> str:
    """Formats measurements as :func:`result_tables` in Markdown, or in JSON with a record for each candidate."""
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
    return format_records(records, result_tables(results), style, about)


def result_tables(results: Sequence[Result]) -> str:
    """Returns a Markdown table for each set of candidates, with one row for each setting.

    The column of a candidate shows the median and, in brackets, the interquartile range. The last columns compare
    medians, and give the speed of native kernels.
    """
    tables: dict[tuple, list[tuple]] = {}
    for case in by_case(results):
        labels, compared = case[0].labels, _compare(case)
        rows = tables.setdefault((len(labels), *labels, *(r.candidate for r in case), *compared), [])
        rows.append((*labels.values(), *map(_cell, case), *map(rounded, compared.values())))
    return '\n\n'.join(
        markdown_table(header, rows, range(labels, len(header))) for (labels, *header), rows in tables.items()
    )


def _compare(case: Sequence[Result]) -> dict[str, float]:
    """Returns ratios of medians, and the GB/s of native kernels: those of backends for one type of device."""
    medians = {result.candidate: result.median for result in case}
    native = [name for name, row in TABLE.items() if row.devices]
    pairs = [(name, 'floor') for name in native]
    pairs += [(other, name) for other in ('reference', 'naive') for name in native]
    pairs += [('unfold', 'involution')]
    pairs += [(other, 'layer') for other in ('unfold', 'taps', 'dense', 'compiled taps', 'compiled flex')]
    pairs += [('fused', 'unfused'), ('RedNet-50', 'ResNet-50'), ('RedNet-101', 'ResNet-101')]
    # A small call may need no new memory: then there is no ratio.
    ratios = {f'{a} / {b}': medians[a] / medians[b] for a, b in pairs if a in medians and medians.get(b)}
    speeds = {f'{r.candidate} GB/s': r.bytes / r.median / 1e6 for r in case if r.candidate in native and r.bytes}
    return ratios | speeds


def _cell(result: Result) -> str:
    spread = f' ({result.iqr:.2g})' if len(result.samples) > 1 else ''
    return f'{rounded(result.median)}{spread}'
