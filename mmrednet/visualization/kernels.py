"""Draws the kernels that an involution generates for an image, as the paper's Figure 3 does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..layers import Involution
from .alignment import ImageAlignment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Section 5.3 shows the last block of conv3_x. The paper counts the stem as the first stage, so that is this stage.
THIRD_STAGE = 'layer2'


@dataclass(frozen=True)
class KernelMap:
    """The kernels (G, Kh, Kw, Ho, Wo) that an involution generates for an image (H, W, 3), which is 8-bit RGB."""

    image: np.ndarray
    alignment: ImageAlignment
    kernel: Tensor


def find_involution(model: nn.Module, name: str | None = None) -> str:
    """Checks the name of an involution, or chooses one.

    The default is the involution of the paper's Figure 3, which is the last of ``layer2``. In a model without that stage
    it is the last involution that processes whole images.

    Raises:
        ValueError: The model has no such involution or none at all, or the involution processes regions of an image.
    """
    known = [layer for layer, module in model.named_modules() if isinstance(module, Involution)]
    names = [layer for layer in known if 'roi_head' not in layer.split('.')]
    if not known:
        raise ValueError(f'the model, {type(model).__name__}, has no involution: give one that has')
    if name is None:
        name = ([layer for layer in names if THIRD_STAGE in layer.split('.')] or names or known)[-1]
    if name not in known:
        raise ValueError(f'layer must be an involution of the model, but is {name!r}: give one of {", ".join(names)}')
    if name not in names:
        raise ValueError(
            f'layer is {name!r}, which processes regions, not whole images: give one of the backbone or the neck'
        )
    return name


class _Generated(Exception):
    """Ends a forward pass at the layer whose kernels are wanted."""


def generate_kernel(model: nn.Module, batch: Mapping[str, Any], layer: str) -> tuple[Tensor, tuple[int, int]]:
    """Generates the kernels of one involution in a toolbox's model.

    The forward pass has no gradients and ends at this layer. If several maps go through the layer, as in an RPN, the
    first one counts, which has the highest resolution. ``batch`` is what a dataloader of the toolbox gives.

    Returns:
        tuple[Tensor, tuple[int, int]]: The kernels (N, G, Kh, Kw, Ho, Wo), and height and width of the model's padded
        input in pixels.

    Raises:
        ValueError: The model is in training mode, where a forward pass changes its statistics, or the layer takes no
            part in a forward pass.
    """
    if any(module.training for module in model.modules()):
        raise ValueError('model must be in evaluation mode, but is in training mode: call model.eval() before')

    def stop(module: Involution, args: tuple[Tensor, ...]) -> None:
        raise _Generated(module.generate_kernel(module.projection(args[0])))

    handle = model.get_submodule(find_involution(model, layer)).register_forward_pre_hook(stop)
    try:
        with torch.no_grad():
            data = model.get_submodule('data_preprocessor')(batch, False)
            model(**data, mode='tensor')
    except _Generated as generated:
        return generated.args[0], tuple(data['inputs'].shape[-2:])
    finally:
        handle.remove()
    raise ValueError(f'layer is {layer!r}, which takes no part in a forward pass: give another')


def heat_map(kernel: Tensor) -> Tensor:
    """Sums up each kernel: (..., Kh, Kw, Ho, Wo) to (..., Ho, Wo) (section 5.3)."""
    return kernel.sum((-4, -3))


def draw_heat_maps(maps: Sequence[KernelMap], groups: Sequence[int] | None = None, title: str = '') -> 'Figure':
    """Draws Figure 3: a row for each image, with the heat map of each group beside it. A group has one colour scale.

    All maps are of one layer. ``groups`` count from 0, and None stands for all.

    Raises:
        ValueError: The layer has no such group.
    """
    groups = _check_groups(groups, len(maps[0].kernel))
    rows = []
    for one in maps:
        sums = heat_map(one.kernel.float()).cpu().numpy()
        rows.append([(sums[group], one.alignment.extent(sums.shape[1:])) for group in groups])
    figure, axes = _draw(maps, rows, groups, title, 'viridis', False)
    for one, row in zip(maps, axes, strict=True):
        for axis in row[1:]:
            _limit(axis, one.alignment)
    return figure


def draw_kernels(
    one: KernelMap, points: Sequence[tuple[float, float]], groups: Sequence[int] | None = None, title: str = ''
) -> 'Figure':
    """Draws the kernels at points (x, y), in pixels of an image: a row for each, with the kernel of each group.

    Raises:
        ValueError: The layer has no such group, or a point is outside the network's input.
    """
    groups = _check_groups(groups, len(one.kernel))
    kernel = one.kernel.float().cpu().numpy()
    cells = [one.alignment.cell(x, y, kernel.shape[3:]) for x, y in points]
    rows = [[(kernel[group, :, :, row, column], None) for group in groups] for row, column in cells]
    figure, axes = _draw([one] * len(points), rows, groups, title, 'RdBu_r', True)
    for (x, y), row in zip(points, axes, strict=True):
        row[0].plot(x, y, marker='+', color='white', markersize=14, markeredgewidth=3)
        row[0].plot(x, y, marker='+', color='black', markersize=12, markeredgewidth=1)
        row[0].set_ylabel(f'{x:g},{y:g}')
    return figure


def to_pixels(figure: 'Figure') -> np.ndarray:
    """Renders a figure as 8-bit RGB (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _check_groups(groups: Sequence[int] | None, count: int) -> Sequence[int]:
    if groups is None:
        return range(count)
    if not groups or not all(0 <= group < count for group in groups):
        raise ValueError(f'groups must be from 0 to {count - 1} with this layer, but are {list(groups)}')
    return groups


def _draw(maps: Sequence[KernelMap], rows: Sequence[Sequence[tuple]], groups, title: str, colors: str, signed: bool):
    """Draws images with panels beside them. The panels of a column share one scale, shown by the colour bar below."""
    # Not pyplot, whose figures and backend belong to the caller.
    from matplotlib.figure import Figure

    boxes = [one.alignment.box for one in maps]
    shapes = [(bottom - top) / (right - left) for (top, bottom), (left, right) in boxes]
    heights = [max(shape, 1) if signed else shape for shape in shapes]  # kernels are square
    figure = Figure(figsize=(1.4 * (len(groups) + 1), 1.4 * sum(heights) + 0.9), dpi=150, layout='constrained')
    ratios = dict(height_ratios=[*heights, 0.07])
    *axes, bars = figure.subplots(len(rows) + 1, len(groups) + 1, squeeze=False, gridspec_kw=ratios)
    for axis in np.ravel(axes):
        axis.set(xticks=[], yticks=[])
    bars[0].axis('off')
    for one, row in zip(maps, axes, strict=True):
        row[0].imshow(one.image)
        _limit(row[0], one.alignment)
    for column, group in enumerate(groups):
        values = np.concatenate([row[column][0].flatten() for row in rows])
        # A few extreme values would make all others one colour. The pointed ends of the bar stand for them.
        low, high = (-abs(values).max(), abs(values).max()) if signed else np.quantile(values, (0.01, 0.99))
        for panels, row in zip(axes, rows, strict=True):
            value, extent = row[column]
            drawn = panels[column + 1].imshow(value, extent=extent, cmap=colors, vmin=low, vmax=high)
        axes[0][column + 1].set_title(f'group {group}', fontsize=8)
        bar = figure.colorbar(
            drawn, cax=bars[column + 1], orientation='horizontal', extend='neither' if signed else 'both'
        )
        bar.ax.tick_params(labelsize=6)
        bar.ax.locator_params(nbins=3)
        bar.ax.xaxis.get_offset_text().set_fontsize(6)
    figure.suptitle(title, fontsize=9)
    return figure, axes


def _limit(axis, alignment: ImageAlignment) -> None:
    """Limits an axis to the part of the image that the network's input shows."""
    (top, bottom), (left, right) = alignment.box
    axis.set(xlim=(left, right), ylim=(bottom, top))
