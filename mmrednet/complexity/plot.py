"""Figure 2 of the paper, with our counts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import replacing
from .tables import Complexity, Row

# The line of each curve. The colours also differ for colour-blind people, and the markers and dashes in grey.
CURVES: dict[str, dict[str, Any]] = {
    'RedNet': dict(color='#c8102e', marker='o'),
    'ResNet': dict(color='#1f4e79', marker='s'),
    'Stand-Alone ResNet': dict(color='#009e73', marker='^'),
    'Stand-Alone ResNet, convolution stem': dict(color='#009e73', marker='^', linestyle='--'),
    'LR-Net': dict(color='#e69f00', marker='D'),
    'AA-ResNet': dict(color='#0072b2', marker='v'),
    'SAN, pairwise': dict(color='#cc79a7', marker='P'),
    'SAN, patchwise': dict(color='#cc79a7', marker='P', linestyle='--'),
    'Axial ResNet': dict(color='#555555', marker='X'),
    'Axial ResNet, convolution stem': dict(color='#555555', marker='X', linestyle='--'),
}
# The offset of the labels of a curve in points, and their alignment. RedNet's curve is the upper one.
_LABELS: dict[str, tuple[tuple[int, int], str]] = {'RedNet': ((-4, 5), 'right'), 'ResNet': ((4, -11), 'left')}


def plot_complexity(results: Mapping[Row, Complexity], path: str | Path) -> tuple[Path, Path]:
    """Draws the paper's accuracy over our FLOPs and parameters (Figure 2), as PNG and SVG.

    ``results`` are those of rows with a ``curve``. The suffix of the path is replaced. Returns the two paths.
    """
    # matplotlib.pyplot would change figures and the backend of the caller.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({'svg.hashsalt': 'mmrednet', 'font.size': 9}):
        figure = Figure(figsize=(8.5, 4), layout='constrained')
        axes = figure.subplots(1, 2, sharey=True)
        for curve, style in CURVES.items():
            rows = [row for row in results if row.curve == curve]
            accuracies = [row.accuracy for row in rows]
            flops = [results[row].flops / 1e9 for row in rows]
            params = [results[row].params / 1e6 for row in rows]
            for axis, values in zip(axes, (flops, params), strict=True):
                axis.plot(values, accuracies, label=curve, **{'linewidth': 1.4, 'markersize': 5, **style})
                for row, *point in zip(rows if curve in _LABELS else [], values, accuracies, strict=False):
                    depth, (offset, align) = row.model.partition('-')[2], _LABELS[curve]
                    axis.annotate(depth, point, offset, textcoords='offset points', ha=align, color=style['color'])
        for axis, label in zip(axes, ('FLOPs (G)', 'Parameters (M)'), strict=True):
            axis.set(xlabel=label)
            axis.set_xlim(left=0)
            axis.grid(alpha=0.3)
            axis.spines[['top', 'right']].set_visible(False)
        axes[0].set(ylim=(73, 80), ylabel="Top-1 on ImageNet (%), the paper's figures")
        figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=3, frameon=False)
        png, svg = Path(path).with_suffix('.png'), Path(path).with_suffix('.svg')
        with replacing(png) as part:
            figure.savefig(part, dpi=200)
            # Without a date, equal values give equal files.
            figure.savefig(part.with_suffix('.svg'), metadata={'Date': None})
    return png, svg
