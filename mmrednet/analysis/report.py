"""Measurements as tables and pictures, with the machine that they were taken on."""

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import import_module
from pathlib import Path

import torch

from .latency import Result

FORMATS = ('markdown', 'csv', 'json')
# Columns of the tables where both candidates were measured.
RATIOS = (
    ('cpu', 'floor'),
    ('cuda', 'floor'),
    ('reference', 'cpu'),
    ('reference', 'cuda'),
    ('naive', 'cuda'),
    ('fused', 'apart'),
    ('RedNet-50', 'ResNet-50'),
    ('RedNet-101', 'ResNet-101'),
)


def describe_machine(device: str | torch.device = 'cpu') -> dict[str, str]:
    """Returns the processor, the versions and the date of today.

    Args:
        device (str or torch.device): What was measured. Defaults to 'cpu'.
    """
    if torch.device(device).type == 'cuda':
        machine = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        machine = f'{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, {threads} thread{"s"[: threads > 1]}'
    versions = [f'Python {platform.python_version()}']
    for name in ('torch', 'cupy', 'mmcv', 'mmpretrain'):
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


def format_results(results: Sequence[Result], style: str, about: Mapping[str, str] = {}) -> str:  # noqa: B006
    """Formats results as 'markdown', 'csv' or 'json'.

    Markdown has a row for each case. A column for each candidate holds the median and, in brackets, the interquartile
    range; then come the ``RATIOS`` of medians. CSV and JSON have a record for each case and candidate.

    Args:
        results (Sequence[Result]): What was measured.
        style (str): One of ``FORMATS``.
        about (Mapping[str, str]): What comes before, such as :func:`describe_machine` returns; in CSV as comments with
            '#'. Defaults to nothing.

    Raises:
        ValueError: There is no such format.
    """
    if style not in FORMATS:
        raise ValueError(f'format must be one of {FORMATS}, but is {style!r}')
    records = [
        {
            **r.labels,
            'candidate': r.candidate,
            'unit': r.unit,
            'median': r.median,
            'iqr': r.iqr,
            'samples': len(r.samples),
        }
        for r in results
    ]
    if style == 'json':
        return json.dumps({**about, 'results': records}, indent=2)
    if style == 'csv':
        text = io.StringIO()
        writer = csv.DictWriter(text, records[0], lineterminator='\n')
        writer.writeheader()
        writer.writerows(records)
        return ''.join(f'# {name}: {value}\n' for name, value in about.items()) + text.getvalue().rstrip()
    return '\n\n'.join(['\n'.join(f'- {name}: {value}' for name, value in about.items()), _tables(results)]).strip()


def _tables(results: Sequence[Result]) -> str:
    """Returns a Markdown table for each set of candidates, its columns as wide as they need."""
    tables = {}
    for case in _cases(results):
        tables.setdefault((*case[0].labels, *(r.candidate for r in case), *_ratios(case)), []).append(case)
    texts = []
    for header, cases in tables.items():
        rows = [(*case[0].labels.values(), *map(_cell, case), *_ratios(case).values()) for case in cases]
        widths = [max(len(str(cell)) for cell in column) for column in zip(header, *rows, strict=True)]
        # Figures are aligned to the right.
        labels = len(cases[0][0].labels)
        rule = ['-' * width if i < labels else '-' * (width - 1) + ':' for i, width in enumerate(widths)]
        lines = [
            [
                str(cell).ljust(w) if i < labels else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            for row in (header, *rows)
        ]
        texts.append('\n'.join(f'| {" | ".join(line)} |' for line in (lines[0], rule, *lines[1:])))
    return '\n\n'.join(texts)


def _cases(results: Sequence[Result]) -> list[list[Result]]:
    """Returns the results of each case."""
    cases = {}
    for result in results:
        cases.setdefault(tuple(result.labels.items()), []).append(result)
    return list(cases.values())


def _ratios(case: Sequence[Result]) -> dict[str, str]:
    medians = {result.candidate: result.median for result in case}
    return {f'{a} / {b}': _rounded(medians[a] / medians[b]) for a, b in RATIOS if a in medians and b in medians}


def _cell(result: Result) -> str:
    spread = f' ({result.iqr:.2g})' if len(result.samples) > 1 else ''
    return f'{_rounded(result.median)}{spread}'


def _rounded(value: float) -> str:
    """Returns three digits, or all before the point."""
    return f'{value:.0f}' if value >= 100 else f'{value:#.3g}'


def plot_results(results: Sequence[Result], path: str | Path) -> Path:
    """Draws medians as bars, with the interquartile ranges, on a log scale.

    Each setting has a panel, and in it each shape or pass a group of bars.

    Args:
        results (Sequence[Result]): What was measured.
        path (str or Path): The picture's path; its suffix says the format.
    """
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot as plt

    # Shapes share a panel; where there are none, the passes do.
    group = next(label for label in ('shape', 'what', 'pass') if label in results[0].labels)
    panels = {}
    for case in _cases(results):
        labels = dict(case[0].labels)
        name = labels.pop(group)
        panels.setdefault(', '.join(f'batch {v}' if k == 'batch' else str(v) for k, v in labels.items()), {})[name] = (
            case
        )
    candidates = list(dict.fromkeys(result.candidate for result in results))
    colours = dict(zip(candidates, plt.get_cmap('tab10').colors, strict=False))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with plt.rc_context({'font.size': 8}):
        figure, axes = plt.subplots(rows, columns, figsize=(10, 1 + 2.4 * rows), squeeze=False, layout='constrained')
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis, (title, cases) in zip(axes.flat, panels.items(), strict=False):
            for position, case in enumerate(cases.values()):
                width = 0.85 / len(case)
                for i, result in enumerate(case):
                    low, high = (result.quantile(q) for q in (0.25, 0.75))
                    axis.bar(
                        position + (i - (len(case) - 1) / 2) * width,
                        result.median,
                        width,
                        yerr=[[result.median - low], [high - result.median]],
                        color=colours[result.candidate],
                        label=result.candidate,
                        error_kw=dict(linewidth=0.8),
                    )
            axis.set_yscale('log')
            axis.set_title(title)
            axis.set_ylabel(results[0].unit)
            axis.set_xticks(range(len(cases)), cases, rotation=25, ha='right')
            axis.grid(axis='y', alpha=0.3)
            axis.spines[['top', 'right']].set_visible(False)
        entries = {
            label: handle for a in figure.axes for handle, label in zip(*a.get_legend_handles_labels(), strict=True)
        }
        figure.legend(entries.values(), entries, loc='outside upper center', ncols=len(entries), frameon=False)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        plt.close(figure)
    return path
