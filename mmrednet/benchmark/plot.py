"""Measurements as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import replacing
from .timing import Result, by_case


def plot_results(results: Sequence[Result], path: str | Path) -> Path:
    """Draws medians as bars on a log scale, with their interquartile ranges. The path's suffix selects the format.

    Each setting has a panel. A panel has a group of bars for each shape or phase.
    """
    from matplotlib.figure import Figure  # pyplot would change figures and the backend of the caller

    group = 'shape' if 'shape' in results[0].labels else 'phase'
    panels: dict[str, dict[str, list[Result]]] = {}
    for case in by_case(results):
        title = ', '.join(f'{name} {value}' for name, value in case[0].labels.items() if name != group)
        panels.setdefault(title, {})[str(case[0].labels[group])] = case
    colours = {name: f'C{i}' for i, name in enumerate(dict.fromkeys(result.candidate for result in results))}
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(10, 1 + 2.4 * rows), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (title, cases) in zip(axes, panels.items(), strict=False):
        for position, case in enumerate(cases.values()):
            _draw_bars(axis, position, case, colours)
        axis.set(yscale='log', ylabel=results[0].unit)
        axis.set_title(title, fontsize=9)
        axis.set_xticks(range(len(cases)), cases, rotation=25, ha='right')
        axis.grid(axis='y', alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    entries = {label: h for axis in figure.axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries, loc='outside upper center', ncols=len(entries), frameon=False)
    with replacing(path) as part:
        figure.savefig(part, dpi=150)
    return Path(path)


def _draw_bars(axis: Any, position: int, case: Sequence[Result], colours: Mapping[str, str]) -> None:
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
        )
