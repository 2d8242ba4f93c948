"""Draws the kernels of an involution for photographs, with the model and the test pipeline of a config."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.dataset import Compose

from ..environment import find_device
from ..inference.photos import read_photo
from ..toolboxes import build_model, read_config, split_pipeline
from .kernels import KernelMap, draw_heat_maps, draw_kernels, find_involution, map_kernels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_photos(
    photos: Sequence[str],
    config: str,
    checkpoint: str | None = None,
    layer: str | None = None,
    groups: Sequence[int] | None = None,
    points: Sequence[tuple[float, float]] = (),
) -> dict[str, 'Figure']:
    """Draws the heat maps of all photographs in one figure and, for each photograph, the kernels at points.

    Args:
        photos (Sequence[str]): The files.
        config (str): The path or the name of a config.
        checkpoint (str, optional): The weights, a path or URL. Defaults to None: random weights.
        layer (str, optional): The name of an involution, see :func:`mmrednet.visualization.kernels.find_involution`.
        groups (Sequence[int], optional): The groups to draw, from 0. Defaults to None, all.
        points (Sequence[tuple[float, float]]): x and y, in pixels of the network's input. Defaults to ().

    Returns:
        dict[str, Figure]: The figures by file name.

    Raises:
        ValueError: An argument is wrong, or a photograph cannot be read.
    """
    parsed = read_config(config)
    model = build_model(parsed, config, checkpoint).to(find_device()).eval()
    layer = find_involution(model, layer)
    load, transform = map(Compose, split_pipeline(parsed))
    maps: list[KernelMap] = []
    for photo in photos:
        image = read_photo(photo, load)
        size = image.shape[:2]
        packed = transform(dict(img=image, img_path=photo, img_shape=size, ori_shape=size))
        maps += map_kernels(model, {name: [value] for name, value in packed.items()}, layer)
    height, width = maps[0].kernel.shape[1:3]
    title = f'{layer}: sum of the {height}x{width} kernel at each place'
    figures = {f'{layer}_heat_maps.png': draw_heat_maps(maps, groups, title)}
    for number, (photo, one) in enumerate(zip(photos, maps, strict=True), 1):
        if points:
            title = f'{layer}: the kernels at places in {Path(photo).name}'
            figures[f'{layer}_kernels_{number}_{Path(photo).stem}.png'] = draw_kernels(one, points, groups, title)
    return figures
