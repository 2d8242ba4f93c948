"""The curves of training: what mmengine logged, of several runs, and a picture of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[list[int], list[float]]  # iterations and values

LOG = 'vis_data/scalars.json'
# What a network is judged by, in each toolbox; and what it learns by.
NAMES = ('loss', 'coco/bbox_mAP', 'coco/segm_mAP', 'mIoU', 'accuracy/top1')


def read_curves(work_dir: str | Path) -> dict[str, Curve]:
    """Returns the curves that a run logged, by name, joined where it was resumed.

    What a resumed run logged takes the place of what the run before it had logged from there on. Validation that is
    counted in epochs stands at the iteration that was logged last before it.

    Args:
        work_dir (str or Path): A run's ``work_dir``, one of the folders in it, or one JSON file of mmengine's.

    Raises:
        FileNotFoundError: Nothing is there, or no log of a training.
        ValueError: A file is not such a log, or the folder holds the folders of runs.
    """
    path = Path(work_dir)
    # The folders in a work_dir are named by the time.
    files = [path] if path.is_file() else sorted(file for at in ('', '*/') for file in path.glob(f'{at}{LOG}'))
    if not files and (runs := sorted({str(file.parents[2]) for file in path.glob(f'**/{LOG}')})):
        raise ValueError(f'{path} is no work_dir, but has some in it: give those of {", ".join(runs)} that you mean')
    if not files:
        raise FileNotFoundError(
            f'{path} holds no vis_data/scalars.json: give the work_dir of a run of mmengine whose vis_backends include '
            'LocalVisBackend'
        )
    points: dict[str, list[tuple[int, float]]] = {}
    for file in files:
        logged = _read(file)
        if not logged:
            continue
        start = logged[0][0]  # the first entry's iteration
        points = {name: [point for point in curve if point[0] < start] for name, curve in points.items()}
        for iteration, name, value in logged:
            points.setdefault(name, []).append((iteration, value))
    if not points:
        raise FileNotFoundError(f'{path} holds no log of a training: give the work_dir of a run that has trained')
    return {name: ([x for x, _ in curve], [y for _, y in curve]) for name, curve in points.items() if curve}


def _read(file: Path) -> list[tuple[int, str, float]]:
    """Returns iteration, name and value of what a training logged; of anything else, nothing."""
    text = file.read_text()
    lines = text.splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            entries.append((entry.pop('step'), entry.pop('iter', None), entry))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            if number == len(lines) and not text.endswith('\n'):
                break  # a run is writing it
            raise ValueError(f'{file} is no log of mmengine: its line {number} is {line[:40]!r}') from error
    now = next((iteration for _, iteration, _ in entries if iteration), None)
    if now is None:
        return []
    logged = []
    for step, iteration, entry in entries:
        # Validation is counted in epochs or in iterations, and the log says not in which.
        now = iteration or max(now, step)
        logged += [
            (now, name.removeprefix('train/').removeprefix('val/'), float(value))
            for name, value in entry.items()
            if isinstance(value, int | float)
        ]
    return logged


def draw_curves(runs: Mapping[str, Mapping[str, Curve]], names: Sequence[str] = ()) -> 'Figure':
    """Draws the curves of runs, a panel for each name.

    Args:
        runs (Mapping): What :func:`read_curves` returns of each run, by the name that the legend has.
        names (Sequence[str]): Which curves. Defaults to those of ``NAMES`` that a run has.

    Raises:
        ValueError: No run has such a curve.
    """
    known = sorted({name for curves in runs.values() for name in curves})
    names = list(names) or [name for name in NAMES if name in known]
    absent = [repr(name) for name in names if name not in known] if names else [f'one of {NAMES}']
    if absent:
        raise ValueError(f'no run has logged {absent[0]}: give some of {", ".join(known)}')
    # Not pyplot, whose figures and backend are the caller's.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(names), 3.4), dpi=150, layout='constrained')
    axes = figure.subplots(1, len(names), squeeze=False, sharex=True)[0]
    for axis, name in zip(axes, names, strict=True):
        for number, (run, curves) in enumerate(runs.items()):
            # A run without this curve keeps its colour in the other panels.
            axis.plot(*curves.get(name, ([], [])), f'C{number % 10}', label=run, marker='.', markersize=4)
        axis.set(title=name, xlabel='iteration')
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', frameon=False, fontsize=8)
    return figure
