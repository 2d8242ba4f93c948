"""Measurements as pictures: bars and a roofline."""

from collections.abc import Sequence
from pathlib import Path

from ..ops import BACKENDS
from .timing import Result, by_case


def plot_results(results: Sequence[Result], path: str | Path) -> Path:
    """Draws medians as bars, with the interquartile ranges, on a log scale.

    Each setting has a panel, and in it each shape or pass a group of bars.

    Args:
        results (Sequence[Result]): What was measured.
        path (str or Path): The picture's path; its suffix says the format.
    """
    # Not pyplot, whose figures and backend are the caller's.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Shapes share a panel; where there are none, the passes do.
    group = next(label for label in ('shape', 'what', 'pass', 'runtime') if label in results[0].labels)
    panels: dict[str, dict[str | int, list[Result]]] = {}
    for case in by_case(results):
        labels = dict(case[0].labels)
        name = labels.pop(group)
        title = ', '.join(f'batch {v}' if k == 'batch' else str(v) for k, v in labels.items())
        panels.setdefault(title, {})[name] = case
    candidates = list(dict.fromkeys(result.candidate for result in results))
    colours = {name: f'C{i}' for i, name in enumerate(candidates)}
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with rc_context({'font.size': 8}):
        figure = Figure(figsize=(10, 1 + 2.4 * rows), layout='constrained')
        axes = figure.subplots(rows, columns, squeeze=False)
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
    return path


def plot_roofline(results: Sequence[Result], path: str | Path) -> Path:
    """Draws the operator's times against the bytes that it has to move, over the times that copies of these take.

    Each pass and type has a panel, and in it each backend a point for each shape and batch size. The line is what the
    bytes take at the fastest copy's bandwidth; copies that fit into the caches are faster than others. What generates
    kernels too, or has none, moves other bytes and is left out.

    Args:
        results (Sequence[Result]): What :func:`.benchmark.benchmark_operator` measured.
        path (str or Path): The picture's path; its suffix says the format.

    Raises:
        ValueError: There is no copy, 'floor', among the results.
    """
    from matplotlib.figure import Figure

    floors = [result for result in results if result.candidate == 'floor' and result.bytes]
    if not floors:
        raise ValueError("results must hold the candidate 'floor', as those of benchmark_operator do")
    panels: dict[str, list[Result]] = {}
    for result in results:
        if result.candidate in ('floor', 'naive', *BACKENDS):
            title = ', '.join(str(v) for k, v in result.labels.items() if k not in ('shape', 'batch'))
            panels.setdefault(title, []).append(result)
    colours = {name: f'C{i}' for i, name in enumerate(('naive', *BACKENDS))}
    figure = Figure(figsize=(4.5 * len(panels) + 1.5, 3.8), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        for candidate in dict.fromkeys(result.candidate for result in panel):
            points = sorted((r.bytes or 0, r.median) for r in panel if r.candidate == candidate)
            moved, times = [size / 2**20 for size, _ in points], [time for _, time in points]
            if candidate == 'floor':
                peak = max(size / time for size, time in points)
                axis.plot(moved, times, '+', color='black', label='a copy of the bytes')
                axis.plot(moved, [size / peak for size, _ in points], color='black', label='at the fastest copy')
                title += f'\nfastest copy: {peak / 1e6:.1f} GB/s'  # bytes per ms are kB per s
            else:
                axis.plot(moved, times, '.', color=colours[candidate], label=candidate)
        axis.set(xscale='log', yscale='log', xlabel='MiB to be read and written')
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].set_ylabel(results[0].unit)
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc='outside right center', frameon=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
