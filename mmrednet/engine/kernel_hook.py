"""The heat maps of an involution's kernels while a network learns."""

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
    """Draws the paper's Figure 3 for the first images of the validation, wherever mmengine's visualizer writes images.

    That is a forward pass, as far as the layer, of these images, on the master process. It leaves training as it is.

    Args:
        layer (str, optional): Name of an involution. Defaults to None, as in
            :func:`mmrednet.visualization.kernels.find_involution`.
        interval (int): Draws in each so many validations, from the first on. Defaults to 1.
        images (int): How many images, at most a batch. Defaults to 4.
        groups (Sequence[int], optional): Which groups, from 0. Defaults to None, all.

    Raises:
        ValueError: ``interval`` or ``images`` is not positive; and, before the run begins, if the model has no such
            involution, or its parameters are not whole in each process.
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
        """Looks for the layer, before hours go by."""
        find_involution(_unwrap(runner.model), self.layer)

    def after_val_iter(self, runner, batch_idx: int, data_batch: Mapping[str, Any], outputs=None) -> None:
        """Draws, after the first batch."""
        if batch_idx:
            return
        self._validations += 1
        if (self._validations - 1) % self.interval or not is_main_process():
            return
        # The process's own model: the others do not take part.
        model = _unwrap(runner.model)
        layer = find_involution(model, self.layer)
        batch = {name: values[: self.images] for name, values in data_batch.items()}
        figure = draw_heat_maps(map_kernels(model, batch, layer), self.groups, layer)
        runner.visualizer.add_image(f'kernels_{layer}', to_pixels(figure), runner.iter)


def _unwrap(model: nn.Module) -> nn.Module:
    if not is_model_wrapper(model):
        return model
    if not isinstance(model, DistributedDataParallel):
        raise ValueError(
            f'KernelHeatMapHook needs the whole model in one process, which {type(model).__name__} does not keep: '
            'leave the hook out, and use `python -m mmrednet visualize` with a checkpoint'
        )
    return model.module
