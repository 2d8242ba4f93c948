"""Records and measurements as text (Markdown, CSV, JSON), with the machine that they were taken on."""

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import import_module
from pathlib import Path

import torch

from .timing import Result, by_case

FORMATS = ('markdown', 'csv', 'json')
# Columns of the tables where both candidates were measured.
RATIOS = (
    ('cpu', 'floor'),
    ('cuda', 'floor'),
    ('reference', 'cpu'),
    ('reference', 'cuda'),
    ('naive', 'cuda'),
    ('compiled', 'cpu'),
    ('compiled', 'cuda'),
    ('fused', 'apart'),
    ('RedNet-50', 'ResNet-50'),
    ('RedNet-101', 'ResNet-101'),
)


def describe_machine(device: str | torch.device = 'cpu', packages: Sequence[str] = ()) -> dict[str, str]:
    """Returns the processor, the versions and the date of today.

    Args:
        device (str or torch.device): What was measured. Defaults to 'cpu'.
        packages (Sequence[str]): What took part besides torch and the toolboxes. Defaults to nothing.
    """
    if torch.device(device).type == 'cuda':
        machine = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        machine = f'{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, {threads} thread{"s"[: threads > 1]}'
    versions = [f'Python {platform.python_version()}']
    for name in ('torch', 'cupy', 'mmcv', 'mmpretrain', *packages):
        try:
            versions.append(f'{name} {import_module(name).__version__}')
        except ImportError:
            continue
    return {'machine': machine, 'versions': ', '.join(versions), 'date': date.today().isoformat()}


def _cpu_name() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def format_records(records: Sequence[Mapping], markdown: str, style: str, about: Mapping[str, str] = {}) -> str:
    """Formats records of the same fields as 'markdown', 'csv' or 'json'.

    Args:
        records (Sequence[Mapping]): At least one; their values are strings and numbers.
        markdown (str): What Markdown has in their place: tables, as :func:`markdown_table` makes them.
        style (str): One of ``FORMATS``.
        about (Mapping[str, str]): What comes before, such as :func:`describe_machine` returns: in Markdown a list, in
            CSV comments with '#', in JSON entries beside 'results', the list of records. Defaults to nothing.

    Raises:
        ValueError: There is no such format.
    """
    if style not in FORMATS:
        raise ValueError(f'format must be one of {FORMATS}, but is {style!r}')
    if style == 'json':
        return json.dumps({**about, 'results': records} if about else records, indent=2)
    if style == 'csv':
        text = io.StringIO()
        writer = csv.DictWriter(text, records[0], lineterminator='\n')
        writer.writeheader()
        writer.writerows(records)
        return ''.join(f'# {name}: {value}\n' for name, value in about.items()) + text.getvalue().rstrip()
    return '\n\n'.join(['\n'.join(f'- {name}: {value}' for name, value in about.items()), markdown]).strip()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence], figures: Sequence[int] = ()) -> str:
    """Returns a table whose columns are as wide as they need.

    Args:
        header (Sequence[str]): The columns' titles.
        rows (Sequence[Sequence]): The cells.
        figures (Sequence[int]): Indices of the columns that are aligned to the right. Defaults to none.
    """
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = [
        [cell.rjust(w) if i in figures else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    lines.insert(1, ['-' * (w - 1) + ':' if i in figures else '-' * w for i, w in enumerate(widths)])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def format_results(results: Sequence[Result], style: str, about: Mapping[str, str] = {}) -> str:
    """Formats measurements as :func:`format_records` does.

    CSV and JSON have a record for each case and candidate. Markdown has a row for each case, in a table for each set of
    candidates. A column for each candidate holds the median and, in brackets, the interquartile range; then come the
    ``RATIOS`` of medians.

    Args:
        results (Sequence[Result]): What was measured.
        style (str): One of ``FORMATS``.
        about (Mapping[str, str]): What comes before. Defaults to nothing.

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
    medians = {result.candidate: result.median for result in case}
    return {f'{a} / {b}': rounded(medians[a] / medians[b]) for a, b in RATIOS if a in medians and b in medians}


def _cell(result: Result) -> str:
    spread = f' ({result.iqr:.2g})' if len(result.samples) > 1 else ''
    return f'{rounded(result.median)}{spread}'


def rounded(value: float) -> str:
    """Returns a figure with three digits, or all before the point."""
    return f'{value:.0f}' if value >= 100 else f'{value:#.3g}'
