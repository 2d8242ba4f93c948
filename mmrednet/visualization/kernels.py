"""What an involution learned: the kernels that it generates for an image, as the paper's Figure 3 shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..layers import Involution
from .view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Section 5.3 takes the last block of conv3_x, in ResNet's count, where the stem is the first stage.
THIRD_STAGE = 'layer2'


@dataclass(frozen=True)
class Seen:
    """An image, and the kernels that an involution generates for it.

    Args:
        image (np.ndarray): The image (H, W, 3), RGB.
        view (View): How it lies over the network's input.
        kernel (Tensor): The kernels (G, Kh, Kw, Ho, Wo).
    """

    image: np.ndarray
    view: View
    kernel: Tensor


def involutions(model: nn.Module) -> dict[str, Involution]:
    """Returns a model's involutions by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Involution)}


def find_involution(model: nn.Module, name: str | None = None) -> str:
    """Returns the name of an involution, if the model has it.

    Args:
        model (nn.Module): Any model.
        name (str, optional): Its name. Defaults to None: the one that the paper's Figure 3 shows, the last of
            ``layer2``; without such a one the last that sees images.

    Raises:
        ValueError: There is no such involution, or none at all, or what it sees are regions of an image.
    """
    known = list(involutions(model))
    names = [layer for layer in known if 'roi_head' not in layer.split('.')]
    if not known:
        raise ValueError(f'the model, {type(model).__name__}, has no involution: give one that has')
    if name is None:
        name = ([layer for layer in names if THIRD_STAGE in layer.split('.')] or names or known)[-1]
    if name not in known:
        raise ValueError(f'layer must be an involution of the model, but is {name!r}: give one of {", ".join(names)}')
    if name not in names:
        raise ValueError(f'layer is {name!r}, which sees regions and not images: give one of the backbone or the neck')
    return name


class _Generated(Exception):
    """Ends a forward pass where all is known that is asked for."""


def generate_kernel(model: nn.Module, batch: Mapping[str, Any], layer: str) -> tuple[Tensor, tuple[int, int]]:
    """Returns the kernels that an involution of a toolbox's model generates, and the size of the model's padded input.

    The forward pass, without gradients, ends there. A layer that several maps go through, as an RPN's, is seen at the
    first, which is the finest.

    Args:
        model (nn.Module): A classifier, detector or segmentor, in evaluation mode.
        batch (Mapping): ``inputs`` and ``data_samples`` as a dataloader of its toolbox gives them.
        layer (str): The involution's name.

    Returns:
        tuple[Tensor, tuple[int, int]]: (N, G, Kh, Kw, Ho, Wo), and height and width in pixels.

    Raises:
        ValueError: The model is in training mode, in which a second look would change its statistics, or the layer
            takes no part in a forward pass.
    """
    if any(module.training for module in model.modules()):
        raise ValueError('model must be in evaluation mode, but is in training mode: call model.eval() before')

    def see(module: Involution, args: tuple[Tensor, ...]) -> None:
        raise _Generated(module.generate_kernel(module.projection(args[0])))

    handle = model.get_submodule(find_involution(model, layer)).register_forward_pre_hook(see)
    try:
        with torch.no_grad():
            data = model.get_submodule('data_preprocessor')(batch, False)
            model(**data, mode='tensor')
    except _Generated as found:
        return found.args[0], tuple(data['inputs'].shape[-2:])
    finally:
        handle.remove()
    raise ValueError(f'layer is {layer!r}, which takes no part in a forward pass: give another')


def heat_map(kernel: Tensor) -> Tensor:
    """Sums up each kernel: (..., Kh, Kw, Ho, Wo) to (..., Ho, Wo) (section 5.3)."""
    return kernel.sum((-4, -3))


def draw_heat_maps(seen: Sequence[Seen], groups: Sequence[int] | None = None, title: str = '') -> 'Figure':
    """Draws Figure 3: a row for each image, with a heat map for each group; what is below another has one scale.

    Args:
        seen (Sequence[Seen]): The images, with kernels of one layer.
        groups (Sequence[int], optional): Which groups, from 0. Defaults to None, all.
        title (str): What stands above. Defaults to ''.
    """
    groups = _check_groups(groups, len(seen[0].kernel))
    rows = []
    for one in seen:
        maps = heat_map(one.kernel.float()).cpu().numpy()
        rows.append([(maps[group], one.view.extent(maps.shape[1:])) for group in groups])
    figure, axes = _draw(seen, rows, groups, title, 'viridis', False)
    for one, row in zip(seen, axes, strict=True):
        for axis in row[1:]:
            _limit(axis, one.view)
    return figure


def draw_kernels(
    seen: Seen, points: Sequence[tuple[float, float]], groups: Sequence[int] | None = None, title: str = ''
) -> 'Figure':
    """Draws the kernels at points of an image: a row for each point, with a kernel for each group.

    Args:
        seen (Seen): The image.
        points (Sequence[tuple[float, float]]): x and y, in pixels of the image.
        groups (Sequence[int], optional): Which groups, from 0. Defaults to None, all.
        title (str): What stands above. Defaults to ''.

    Raises:
        ValueError: The network does not see a point.
    """
    groups = _check_groups(groups, len(seen.kernel))
    kernel = seen.kernel.float().cpu().numpy()
    cells = [seen.view.cell(x, y, kernel.shape[3:]) for x, y in points]
    rows = [[(kernel[group, :, :, row, column], None) for group in groups] for row, column in cells]
    figure, axes = _draw([seen] * len(points), rows, groups, title, 'RdBu_r', True)
    for (x, y), row in zip(points, axes, strict=True):
        row[0].plot(x, y, marker='+', color='white', markersize=14, markeredgewidth=3)
        row[0].plot(x, y, marker='+', color='black', markersize=12, markeredgewidth=1)
        row[0].set_ylabel(f'{x:g},{y:g}')
    return figure


def to_pixels(figure: 'Figure') -> np.ndarray:
    """Returns a figure as an image (H, W, 3), RGB."""
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


def _draw(seen: Sequence[Seen], rows: Sequence[Sequence[tuple]], groups, title: str, colors: str, signed: bool):
    """Draws images and, beside each, its maps; the maps of a column have one scale, and a bar below that says it."""
    # Not pyplot, whose figures and backend are the caller's.
    from matplotlib.figure import Figure

    shapes = [(bottom - top) / (right - left) for (top, bottom), (left, right) in (one.view.box for one in seen)]
    heights = [max(shape, 1) if signed else shape for shape in shapes]  # kernels are square
    figure = Figure(figsize=(1.4 * (len(groups) + 1), 1.4 * sum(heights) + 0.9), dpi=150, layout='constrained')
    ratios = dict(height_ratios=[*heights, 0.07])
    *axes, bars = figure.subplots(len(rows) + 1, len(groups) + 1, squeeze=False, gridspec_kw=ratios)
    for axis in np.ravel(axes):
        axis.set(xticks=[], yticks=[])
    bars[0].axis('off')
    for one, row in zip(seen, axes, strict=True):
        row[0].imshow(one.image)
        _limit(row[0], one.view)
    for column, group in enumerate(groups):
        values = np.concatenate([row[column][0].flatten() for row in rows])
        # A few places of extreme values would leave the others one colour: the bar's pointed ends stand for them.
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


def _limit(axis, view: View) -> None:
    """Has an axis show what the network sees of the image."""
    (top, bottom), (left, right) = view.box
    axis.set(xlim=(left, right), ylim=(bottom, top))
