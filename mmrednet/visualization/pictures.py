"""Draws the kernels of an involution for photographs, with the model and the test pipeline of a config."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.dataset import Compose
from torch import nn

from ..environment import find_device
from ..inference.photos import read_photo
from ..toolboxes import build_model, read_config, split_pipeline
from .kernels import KernelMap, draw_heat_maps, draw_kernels, find_involution, map_kernels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class KernelDrawer:
    """A model whose kernels are drawn.

    Args:
        config (str): The path or the name of a config.
        checkpoint (str, optional): The weights, a path or URL. Defaults to None: random weights.
        layer (str, optional): The name of an involution, see :func:`mmrednet.visualization.kernels.find_involution`.

    Raises:
        ValueError: The config, the checkpoint or the layer is wrong.
    """

    def __init__(self, config: str, checkpoint: str | None = None, layer: str | None = None) -> None:
        parsed = read_config(config)
        self.model: nn.Module = build_model(parsed, config, checkpoint)
        self.model.to(find_device()).eval()
        self.layer = find_involution(self.model, layer)
        self._load, self._transform = map(Compose, split_pipeline(parsed))

    def map_kernels(self, photo: str) -> KernelMap:
        """Generates the kernels for a photograph.

        Raises:
            ValueError: It cannot be read.
        """
        image = read_photo(photo, self._load)
        size = image.shape[:2]
        packed = self._transform(dict(img=image, img_path=photo, img_shape=size, ori_shape=size))
        return map_kernels(self.model, {name: [value] for name, value in packed.items()}, self.layer)[0]

    def draw(
        self, photos: Sequence[str], groups: Sequence[int] | None = None, points: Sequence[tuple[float, float]] = ()
    ) -> Iterator[tuple[str, 'Figure']]:
        """Draws the heat maps of all photographs in one figure and, for each photograph, the kernels at points.

        Yields:
            tuple[str, Figure]: A name for a file, and the figure.
        """
        maps = [self.map_kernels(photo) for photo in photos]
        height, width = maps[0].kernel.shape[1:3]
        title = f'{self.layer}: sum of the {height}x{width} kernel at each place'
        yield f'{self.layer}_heat_maps.png', draw_heat_maps(maps, groups, title)
        if points:
            for number, (photo, one) in enumerate(zip(photos, maps, strict=True), 1):
                title = f'{self.layer}: the kernels at places in {Path(photo).name}'
                yield f'{self.layer}_kernels_{number}_{Path(photo).stem}.png', draw_kernels(one, points, groups, title)
