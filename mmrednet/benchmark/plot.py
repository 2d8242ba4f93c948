"""Measurements as pictures: bars and a roofline."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import replacing
from ..ops.backends import TABLE
from .timing import Result, by_case


def plot_results(results: Sequence[Result], path: str | Path) -> Path:
    """Draws medians as bars on a log scale, with their interquartile ranges. The path's suffix selects the format.

    Each setting has a panel. A panel has a group of bars for each shape, pass or runtime.
    """
    group = next(label for label in ('shape', 'runtime', 'pass') if label in results[0].labels)
    panels: dict[str, dict[str, list[Result]]] = {}
    for case in by_case(results):
        title = ', '.join(f'{name} {value}' for name, value in case[0].labels.items() if name != group)
        panels.setdefault(title, {})[str(case[0].labels[group])] = case
    colours = _colours(result.candidate for result in results)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = _subplots(rows, columns, (10, 1 + 2.4 * rows))
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (title, cases) in zip(axes, panels.items(), strict=False):
        for position, case in enumerate(cases.values()):
            _draw_bars(axis, position, case, colours)
        axis.set(yscale='log', ylabel=results[0].unit)
        axis.set_xticks(range(len(cases)), cases, rotation=25, ha='right')
        _finish(axis, title)
    return _save(figure, path, 'outside upper center', ncols=len(colours))


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


def plot_roofline(results: Sequence[Result], path: str | Path) -> Path:
    """Draws the times of the operator, from :func:`.benchmark_operator`, over the bytes that it has to move.

    Each pass and dtype has a panel. A panel has a point for each backend, shape and batch size, and for a copy of the
    same bytes. The line is the bandwidth of the fastest copy. Copies that fit into the caches are faster than others.
    Candidates that generate kernels, or have none, move other bytes and are left out.
    """
    if not any(result.candidate == 'floor' and result.bytes for result in results):
        raise ValueError("results must hold the candidate 'floor', as those of benchmark_operator do")
    backends = ('naive', 'reference', *TABLE)
    panels: dict[str, list[Result]] = {}
    for result in results:
        if result.candidate in ('floor', *backends):
            title = ', '.join(str(value) for name, value in result.labels.items() if name not in ('shape', 'batch'))
            panels.setdefault(title, []).append(result)
    colours = _colours(backends)
    figure, axes = _subplots(1, len(panels), (4.5 * len(panels) + 1.5, 3.8), sharex=True, sharey=True)
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        peak = _draw_points(axis, panel, colours)
        axis.set(xscale='log', yscale='log', xlabel='MiB to be read and written')
        _finish(axis, f'{title}\nfastest copy: {peak / 1e6:.1f} GB/s')  # bytes per ms are kB per s
    axes[0].set_ylabel(results[0].unit)
    return _save(figure, path, 'outside right center')


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


def _colours(names: Iterable[str]) -> dict[str, str]:
    return {name: f'C{i}' for i, name in enumerate(dict.fromkeys(names))}


def _subplots(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # pyplot would change figures and the backend of the caller

    figure = Figure(figsize=size, layout='constrained')
    return figure, figure.subplots(rows, columns, squeeze=False, **options).ravel()


def _finish(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.3)
    axis.spines[['top', 'right']].set_visible(False)


def _save(figure: Any, path: str | Path, place: str, **options: Any) -> Path:
    """Saves a figure with a legend that has one entry for each label of its panels."""
    entries = {label: h for axis in figure.axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries, loc=place, frameon=False, **options)
    with replacing(path) as part:
        figure.savefig(part, dpi=150)
    return Path(path)
