"""The hook that draws heat maps of an involution's kernels during training."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..registry import HOOKS
from ..visualization.kernels import draw_heat_maps, find_involution, map_kernels, to_pixels


@HOOKS.register_module()
class KernelHeatMapHook(Hook):
    """Draws the paper's Figure 3 for the first images of the validation, and gives it to mmengine's visualizer.

    The main process runs the network up to the layer once more for each drawing. Training is not affected.

    Args:
        layer (str, optional): Name of an involution. Defaults to None: see
            :func:`mmrednet.visualization.kernels.find_involution`.
        interval (int): Number of validations from one drawing to the next. The first one is drawn. Defaults to 1.
        images (int): Number of images, at most the batch size. Defaults to 4.
        groups (Sequence[int], optional): Groups to draw, counted from 0. Defaults to None, all.

    Raises:
        ValueError: ``interval`` or ``images`` is not positive. Before the run begins: the model has no such
            involution, or its parameters are spread over several processes.
    """

    def __init__(
        self, layer: str | None = None, interval: int = 1, images: int = 4, groups: Sequence[int] | None = None
    ) -> None:
        for name, value in (('interval', interval), ('images', images)):
            if value < 1:
                raise ValueError(f'{name} must be at least 1, but is {value!r}')
        self.layer = layer
        self.interval = interval
        self.images = images
        self.groups = groups
        self._validations = 0

    def before_run(self, runner) -> None:
        """Raises an error at once, not after hours of training, if there is no such layer."""
        find_involution(_unwrap(runner.model), self.layer)

    def after_val_iter(self, runner, batch_idx: int, data_batch: Mapping[str, Any], outputs=None) -> None:
        """Draws the figure after the first batch."""
        if batch_idx:
            return
        self._validations += 1
        if (self._validations - 1) % self.interval or not is_main_process():
            return
        # Without the distributed wrapper, which would wait for the other processes.
        model = _unwrap(runner.model)
        layer = find_involution(model, self.layer)
        batch = {name: values[: self.images] for name, values in data_batch.items()}
        figure = draw_heat_maps(map_kernels(model, batch, layer), self.groups, layer)
        runner.visualizer.add_image(f'kernels_{layer}', to_pixels(figure), runner.iter)


def _unwrap(model: nn.Module) -> nn.Module:
    if is_model_wrapper(model) and not isinstance(model, DistributedDataParallel):
        raise ValueError(
            f'KernelHeatMapHook needs the whole model in one process, but {type(model).__name__} spreads it over '
            'several: remove the hook, and use `python -m mmrednet visualize` with a checkpoint'
        )
    return model.module if isinstance(model, DistributedDataParallel) else model
