"""Figure 2 of the paper, with our counts."""

from collections.abc import Mapping
from pathlib import Path

from .tables import Complexity, Row

# The colours differ in grey, too, and for people who are colour-blind.
_STYLES = {'RedNet': dict(color='#c8102e', marker='o'), 'ResNet': dict(color='#1f4e79', marker='s')}


def plot_complexity(results: Mapping[Row, Complexity], path: str | Path) -> tuple[Path, Path]:
    """Draws the paper's accuracy over our FLOPs and parameters of ResNet and RedNet (Figure 2), as PNG and SVG.

    Args:
        results (Mapping): The rows of Table 1 and their parameters and FLOPs.
        path (str or Path): The path of the picture. Its suffix is replaced by ``.png`` and ``.svg``.

    Returns:
        tuple[Path, Path]: The paths of the PNG and the SVG.
    """
    # matplotlib.pyplot would change figures and the backend of the caller.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({'svg.hashsalt': 'mmrednet', 'font.size': 9}):
        figure = Figure(figsize=(7.5, 3.2), layout='constrained')
        axes = figure.subplots(1, 2, sharey=True)
        for family, style in _STYLES.items():
            rows = [row for row in results if row.table == '1' and row.model.startswith(family)]
            flops = [results[row].flops / 1e9 for row in rows]
            params = [results[row].params / 1e6 for row in rows]
            for axis, values in zip(axes, (flops, params), strict=True):
                axis.plot(values, [row.accuracy for row in rows], label=family, linewidth=1.6, **style)
                for row, value in zip(rows, values, strict=True):
                    # RedNet's curve lies above ResNet's: its labels go above it, those of ResNet below.
                    offset, align = ((-4, 5), 'right') if family == 'RedNet' else ((4, -11), 'left')
                    depth = row.model.partition('-')[2]
                    axis.annotate(
                        depth, (value, row.accuracy), offset, textcoords='offset points', ha=align, color=style['color']
                    )
        for axis, label in zip(axes, ('FLOPs (G)', 'Parameters (M)'), strict=True):
            axis.set_xlabel(label)
            axis.set_xlim(left=0)
            axis.grid(alpha=0.3)
            axis.spines[['top', 'right']].set_visible(False)
        axes[0].set_ylim(73, 80)
        axes[0].set_ylabel("Top-1 on ImageNet (%), the paper's figures")
        axes[1].legend(loc='lower right', frameon=False)
        paths = Path(path).with_suffix('.png'), Path(path).with_suffix('.svg')
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without a date, equal values give equal files.
            figure.savefig(path, dpi=200, metadata={'Date': None} if path.suffix == '.svg' else None)
    return paths
