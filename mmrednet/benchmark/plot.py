"""Measurements as pictures: bars and a roofline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import replacing
from ..ops.backends import TABLE
from .timing import Result, by_case


def plot_results(results: Sequence[Result], path: str | Path) -> Path:
    """Draws medians as bars on a log scale, with their interquartile ranges.

    Each setting has a panel. A panel has a group of bars for each shape, pass or runtime.

    Args:
        results (Sequence[Result]): The measurements.
        path (str or Path): The path of the picture. Its suffix selects the format.
    """
    # matplotlib.pyplot would change figures and the backend of the caller.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = _panels(results)
    colours = {name: f'C{i}' for i, name in enumerate(dict.fromkeys(result.candidate for result in results))}
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with rc_context({'font.size': 8}):
        figure = Figure(figsize=(10, 1 + 2.4 * rows), layout='constrained')
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis, (title, cases) in zip(axes.flat, panels.items(), strict=False):
            for position, case in enumerate(cases.values()):
                _draw_bars(axis, position, case, colours)
            axis.set_yscale('log')
            axis.set_ylabel(results[0].unit)
            axis.set_xticks(range(len(cases)), cases, rotation=25, ha='right')
            axis.grid(axis='y', alpha=0.3)
            _finish(axis, title)
        entries = _legend(figure)
        figure.legend(entries.values(), entries, loc='outside upper center', ncols=len(entries), frameon=False)
        return _save(figure, path)


def _panels(results: Sequence[Result]) -> dict[str, dict[str | int, list[Result]]]:
    """Returns the results by title and group: shapes share a panel, or else passes or runtimes do."""
    group = next(label for label in ('shape', 'what', 'pass', 'runtime') if label in results[0].labels)
    panels: dict[str, dict[str | int, list[Result]]] = {}
    for case in by_case(results):
        labels = dict(case[0].labels)
        name = labels.pop(group)
        title = ', '.join(f'batch {v}' if k == 'batch' else str(v) for k, v in labels.items())
        panels.setdefault(title, {})[name] = case
    return panels


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
            error_kw=dict(linewidth=0.8),
        )


def plot_roofline(results: Sequence[Result], path: str | Path) -> Path:
    """Draws the times of the operator over the bytes that it has to move.

    Each pass and dtype has a panel. A panel has a point for each backend, shape and batch size, and for a copy of the
    same bytes. The line is the bandwidth of the fastest copy. Copies that fit into the caches are faster than others.
    Candidates that generate kernels, or have none, move other bytes and are left out.

    Args:
        results (Sequence[Result]): Results of :func:`.benchmark_operator`.
        path (str or Path): The path of the picture. Its suffix selects the format.

    Raises:
        ValueError: The results have no copy, 'floor'.
    """
    from matplotlib.figure import Figure

    if not any(result.candidate == 'floor' and result.bytes for result in results):
        raise ValueError("results must hold the candidate 'floor', as those of benchmark_operator do")
    backends = ('naive', 'reference', *TABLE)
    panels: dict[str, list[Result]] = {}
    for result in results:
        if result.candidate in ('floor', *backends):
            title = ', '.join(str(v) for k, v in result.labels.items() if k not in ('shape', 'batch'))
            panels.setdefault(title, []).append(result)
    colours = {name: f'C{i}' for i, name in enumerate(backends)}
    figure = Figure(figsize=(4.5 * len(panels) + 1.5, 3.8), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        peak = _draw_points(axis, panel, colours)
        axis.set(xscale='log', yscale='log', xlabel='MiB to be read and written')
        axis.grid(alpha=0.3)
        _finish(axis, f'{title}\nfastest copy: {peak / 1e6:.1f} GB/s')  # bytes per ms are kB per s
    axes[0].set_ylabel(results[0].unit)
    entries = _legend(figure)
    figure.legend(entries.values(), entries, loc='outside right center', frameon=False)
    return _save(figure, path)


def _draw_points(axis: Any, panel: Sequence[Result], colours: Mapping[str, str]) -> float:
    """Draws a panel of the roofline, and returns the bandwidth of its fastest copy in bytes per ms."""
    peak = 0.0
    for candidate in dict.fromkeys(result.candidate for result in panel):
        points = sorted((r.bytes or 0, r.median) for r in panel if r.candidate == candidate)
        moved, times = [size / 2**20 for size, _ in points], [time for _, time in points]
        if candidate == 'floor':
            peak = max(size / time for size, time in points)
            axis.plot(moved, times, '+', color='black', label='a copy of the bytes')
            axis.plot(moved, [size / peak for size, _ in points], color='black', label='at the fastest copy')
        else:
            axis.plot(moved, times, '.', color=colours[candidate], label=candidate)
    return peak


def _finish(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.spines[['top', 'right']].set_visible(False)


def _legend(figure: Any) -> dict[str, Any]:
    """Returns one handle for each label of a figure's panels."""
    return {label: handle for a in figure.axes for handle, label in zip(*a.get_legend_handles_labels(), strict=True)}


def _save(figure: Any, path: str | Path) -> Path:
    with replacing(path) as part:
        figure.savefig(part, dpi=150)
    return Path(path)
