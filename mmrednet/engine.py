"""What the configs use of mmengine's loop: a runner that says what is missing before it starts, and a progress bar."""

import os
import sys

import torch
from mmengine.device import get_device
from mmengine.dist import is_distributed, master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner as MMEngineRunner
from mmengine.utils import ProgressBar
from torch import nn

from .registry import HOOKS, RUNNERS


@RUNNERS.register_module()
class Runner(MMEngineRunner):
    """mmengine's runner, which looks for the data and the checkpoint before it builds on them.

    With ``--launcher pytorch`` it also runs on CPUs, where mmengine's needs a GPU for each process.
    ``runner_type='mmrednet.Runner'`` in a config selects it.
    """

    def setup_env(self, env_cfg: dict) -> None:
        """Sets up the environment as mmengine does, and the processes of CPUs with gloo."""
        if self.distributed and get_device() == 'cpu' and not is_distributed():
            torch.distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wraps the model for distributed training as mmengine does; on CPUs without the GPU's number."""
        if self.distributed and get_device() == 'cpu':
            unused = self.cfg.get('find_unused_parameters', False)
            defaults = dict(device_ids=None, broadcast_buffers=False, find_unused_parameters=unused)
            model_wrapper_cfg = {**defaults, **(model_wrapper_cfg or {})}
        return super().wrap_model(model_wrapper_cfg, model)

    @staticmethod
    def build_dataloader(dataloader, *args, **kwargs):
        """Builds a dataloader as mmengine does.

        Raises:
            FileNotFoundError: The data root of one of its data sets is a path where nothing is.
        """
        if isinstance(dataloader, dict):
            _check_data_root(dataloader.get('dataset'))
        return MMEngineRunner.build_dataloader(dataloader, *args, **kwargs)

    @classmethod
    def from_cfg(cls, cfg) -> 'Runner':
        """Builds the runner from a config as mmengine does.

        Raises:
            FileNotFoundError: ``load_from`` is a path where no file is.
        """
        load_from = cfg.get('load_from')
        if load_from is not None and '://' not in str(load_from) and not os.path.isfile(load_from):
            raise FileNotFoundError(
                f'load_from (or --checkpoint) names the checkpoint {load_from!r}, where no file is: '
                'give the path or address of a checkpoint'
            )
        return super().from_cfg(cfg)


def _check_data_root(dataset) -> None:
    """Looks at a data set's config and at those that it wraps."""
    if isinstance(dataset, (list, tuple)):
        for item in dataset:
            _check_data_root(item)
    if not isinstance(dataset, dict):
        return
    for key in ('dataset', 'datasets'):
        _check_data_root(dataset.get(key))
    root = dataset.get('data_root')
    if root and '://' not in root and not os.path.isdir(root):
        raise FileNotFoundError(
            f'data_root of the data set {dataset.get("type")} is {root!r}, where no folder is: '
            'put the data there, link it there, or set data_root in the config'
        )


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """Shows how far training and testing are, where the output is a terminal."""

    # The bar's line ends before the logger writes the next one.
    priority = 'ABOVE_NORMAL'
    _bar = None

    @master_only
    def _before_epoch(self, runner, mode: str = 'train') -> None:
        if sys.stdout.isatty():
            self._bar = ProgressBar(len(getattr(runner, f'{mode}_dataloader')), bar_width=30, file=sys.stdout)

    def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None, mode: str = 'train') -> None:
        if self._bar is not None:
            self._bar.update()

    def _after_epoch(self, runner, mode: str = 'train') -> None:
        if self._bar is not None:
            self._bar.file.write('\n')
            self._bar = None
