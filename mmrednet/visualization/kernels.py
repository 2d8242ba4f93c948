"""Draws the kernels that an involution generates for an image, as the paper's Figure 3 does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..inference.photos import to_picture
from ..layers import Involution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Section 5.3 shows the last block of conv3_x. conv1 is the stem and conv2_x is layer1.
THIRD_STAGE = 'layer2'


@dataclass(frozen=True)
class KernelMap:
    """The kernels that an involution generates for an image.

    Coordinates are pixels of the image. They count from the centre of the first pixel, as in ``matplotlib.imshow``.

    Args:
        image (np.ndarray): The network's input without its padding: 8-bit RGB (H, W, 3).
        kernel (Tensor): The kernels (G, Kh, Kw, Ho, Wo).
        padded (tuple[int, int]): Height and width of the network's input. Padding is below and to the right.
    """

    image: np.ndarray
    kernel: Tensor
    padded: tuple[int, int]

    @property
    def cell(self) -> tuple[float, float]:
        """Height and width of a cell of the map."""
        rows, columns = self.kernel.shape[3:]
        return cell_size(self.padded[0], rows), cell_size(self.padded[1], columns)

    def extent(self) -> tuple[float, float, float, float]:
        """Returns where the map lies: left, right, bottom, top. Its last cells may reach beyond the input's border."""
        rows, columns = self.kernel.shape[3:]
        return -0.5, self.cell[1] * columns - 0.5, self.cell[0] * rows - 0.5, -0.5

    def kernels_at(self, x: float, y: float) -> Tensor:
        """Returns the kernels (G, Kh, Kw) at a point.

        Raises:
            ValueError: The point is outside the image.
        """
        height, width = self.image.shape[:2]
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise ValueError(
                f'{x:g},{y:g} is a place outside the input of the network: give x from 0 to {width - 1} and y from 0 '
                f'to {height - 1}'
            )
        row, column = (int((at + 0.5) / size) for at, size in zip((y, x), self.cell, strict=True))
        return self.kernel[..., min(row, self.kernel.shape[3] - 1), min(column, self.kernel.shape[4] - 1)]


def cell_size(padded: int, cells: int) -> float:
    """Returns the size of a map's cell along one side, in pixels of the network's input.

    Networks halve a size and round up. If that gives the number of cells, the border may cut off the last cell.
    """
    size = 2 ** ceil(log2(padded / cells))
    return size if ceil(padded / size) == cells else padded / cells


def find_involution(model: nn.Module, name: str | None = None) -> str:
    """Checks the name of an involution, or chooses one. It must process whole images, unlike those of RoI heads.

    The default is the involution of the paper's Figure 3, which is the last of ``layer2``. In a model without that
    stage it is the last involution.

    Raises:
        ValueError: The model has no such involution, or none at all.
    """
    names = [
        layer
        for layer, module in model.named_modules()
        if isinstance(module, Involution) and 'roi_head' not in layer.split('.')
    ]
    if not names:
        raise ValueError(f'the model, {type(model).__name__}, has no involution for whole images: give another')
    if name is None:
        name = ([layer for layer in names if THIRD_STAGE in layer.split('.')] or names)[-1]
    if name not in names:
        raise ValueError(
            f'layer must be an involution that processes whole images, but is {name!r}: give one of {", ".join(names)}'
        )
    return name


class _Generated(Exception):
    """Ends a forward pass at the layer whose kernels are wanted."""


def generate_kernel(model: nn.Module, batch: Mapping[str, Any], layer: str) -> tuple[Tensor, tuple[int, int]]:
    """Generates the kernels of one involution in a toolbox's model.

    The forward pass has no gradients and ends at this layer. If several maps go through the layer, as in an RPN, the
    first one counts, which has the highest resolution. ``batch`` is a batch of the toolbox's dataloader.

    Returns:
        tuple[Tensor, tuple[int, int]]: The kernels (N, G, Kh, Kw, Ho, Wo), and height and width of the model's padded
        input in pixels.

    Raises:
        ValueError: The model is in training mode, where a forward pass changes its statistics, or the layer takes no
            part in a forward pass.
    """
    if any(module.training for module in model.modules()):
        raise ValueError('model must be in evaluation mode, but is in training mode: call model.eval() first')

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


def map_kernels(model: nn.Module, batch: Mapping[str, Any], layer: str) -> list[KernelMap]:
    """Generates the kernels of one involution for each image of a batch, see :func:`generate_kernel`."""
    kernels, padded = generate_kernel(model, batch, layer)
    pictures = [to_picture(pixels.permute(1, 2, 0).cpu().numpy()) for pixels in batch['inputs']]
    return [KernelMap(picture, kernel, padded) for picture, kernel in zip(pictures, kernels, strict=True)]


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
    values = [heat_map(one.kernel.float()).cpu().numpy()[groups] for one in maps]
    figure, axes = _draw(maps, values, groups, title, signed=False)
    for one, row in zip(maps, axes, strict=True):
        for axis in row[1:]:
            axis.images[0].set_extent(one.extent())
            axis.set(xlim=row[0].get_xlim(), ylim=row[0].get_ylim())
    return figure


def draw_kernels(
    one: KernelMap, points: Sequence[tuple[float, float]], groups: Sequence[int] | None = None, title: str = ''
) -> 'Figure':
    """Draws the kernels at points (x, y) of an image: a row for each, with the kernel of each group.

    Raises:
        ValueError: The layer has no such group, or a point is outside the image.
    """
    groups = _check_groups(groups, len(one.kernel))
    values = [one.kernels_at(x, y).float().cpu().numpy()[groups] for x, y in points]
    figure, axes = _draw([one] * len(points), values, groups, title, signed=True)
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


def _check_groups(groups: Sequence[int] | None, count: int) -> list[int]:
    if groups is None:
        return list(range(count))
    if not groups or not all(0 <= group < count for group in groups):
        raise ValueError(f'groups must be from 0 to {count - 1} with this layer, but are {list(groups)}')
    return list(groups)


def _draw(maps: Sequence[KernelMap], values: Sequence[np.ndarray], groups: Sequence[int], title: str, signed: bool):
    """Draws images with panels beside them. The panels of a column share one scale, shown by the colour bar below."""
    # Not pyplot, whose figures and backend belong to the caller.
    from matplotlib.figure import Figure

    heights = [one.image.shape[0] / one.image.shape[1] for one in maps]
    heights = [max(height, 1) for height in heights] if signed else heights  # kernels are square
    figure = Figure(figsize=(1.4 * (len(groups) + 1), 1.4 * sum(heights) + 0.9), dpi=150, layout='constrained')
    ratios = dict(height_ratios=[*heights, 0.07])
    *axes, bars = figure.subplots(len(maps) + 1, len(groups) + 1, squeeze=False, gridspec_kw=ratios)
    bars[0].axis('off')
    for one, row in zip(maps, axes, strict=True):
        row[0].imshow(one.image)
        row[0].tick_params(labelsize=6)  # places for `--at` are read here
    for column, group in enumerate(groups):
        shown = np.concatenate([row[column].flatten() for row in values])
        # A few extreme values would make all others one colour. The pointed ends of the bar stand for them.
        low, high = (-abs(shown).max(), abs(shown).max()) if signed else np.quantile(shown, (0.01, 0.99))
        colours = dict(cmap='RdBu_r' if signed else 'viridis', vmin=low, vmax=high)
        for panels, row in zip(axes, values, strict=True):
            panels[column + 1].set(xticks=[], yticks=[])
            drawn = panels[column + 1].imshow(row[column], **colours)
        axes[0][column + 1].set_title(f'group {group}', fontsize=8)
        ends = 'neither' if signed else 'both'
        bar = figure.colorbar(drawn, cax=bars[column + 1], orientation='horizontal', extend=ends)
        bar.ax.tick_params(labelsize=6)
        bar.ax.locator_params(nbins=3)
        bar.ax.xaxis.get_offset_text().set_fontsize(6)
    figure.suptitle(title, fontsize=9)
    return figure, axes
