"""Figure 2 of the paper, with our counts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .tables import Complexity, Row

# The colours also differ in grey and for colour-blind people. RedNet's curve is the upper one and has its labels above
# it, ResNet's has them below. The last two entries are the labels' offset in points and their alignment.
_STYLES: dict[str, tuple[Any, tuple[int, int], str]] = {
    'RedNet': (dict(color='#c8102e', marker='o'), (-4, 5), 'right'),
    'ResNet': (dict(color='#1f4e79', marker='s'), (4, -11), 'left'),
}


def plot_complexity(results: Mapping[Row, Complexity], path: str | Path) -> tuple[Path, Path]:
    """Draws the paper's accuracy over our FLOPs and parameters of ResNet and RedNet (Figure 2), as PNG and SVG.

    ``results`` are those of rows of Table 1. The suffix of the path is replaced. Returns the two paths.
    """
    # matplotlib.pyplot would change figures and the backend of the caller.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({'svg.hashsalt': 'mmrednet', 'font.size': 9}):
        figure = Figure(figsize=(7.5, 3.2), layout='constrained')
        axes = figure.subplots(1, 2, sharey=True)
        for family, (style, offset, align) in _STYLES.items():
            rows = [row for row in results if row.model.startswith(family)]
            accuracies = [row.accuracy for row in rows]
            flops = [results[row].flops / 1e9 for row in rows]
            params = [results[row].params / 1e6 for row in rows]
            for axis, values in zip(axes, (flops, params), strict=True):
                axis.plot(values, accuracies, label=family, linewidth=1.6, **style)
                for row, *point in zip(rows, values, accuracies, strict=True):
                    depth = row.model.partition('-')[2]
                    axis.annotate(depth, point, offset, textcoords='offset points', ha=align, color=style['color'])
        for axis, label in zip(axes, ('FLOPs (G)', 'Parameters (M)'), strict=True):
            axis.set(xlabel=label)
            axis.set_xlim(left=0)
            axis.grid(alpha=0.3)
            axis.spines[['top', 'right']].set_visible(False)
        axes[0].set(ylim=(73, 80), ylabel="Top-1 on ImageNet (%), the paper's figures")
        axes[1].legend(loc='lower right', frameon=False)
        png, svg = Path(path).with_suffix('.png'), Path(path).with_suffix('.svg')
        png.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(png, dpi=200)
        figure.savefig(svg, metadata={'Date': None})  # without a date, equal values give equal files
    return png, svg
