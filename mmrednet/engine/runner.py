"""The runner of our configs: it reports missing data and checkpoints before it builds on them."""

import atexit
import os
from logging import WARNING

import torch
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner as MMEngineRunner
from torch import nn

from ..checkpoint import READ_HERE, missing
from ..models.rednet import RedNet
from ..registry import RUNNERS


def connect_cpus() -> None:
    """Has the processes of CPUs talk through gloo, where mmengine asks for a GPU for each."""
    if get_device() == 'cpu' and not is_distributed():
        torch.distributed.init_process_group('gloo')
        # gloo's threads, where they still run when the process ends, may abort it.
        atexit.register(_disconnect)


def _disconnect() -> None:
    if is_distributed():
        torch.distributed.destroy_process_group()


@RUNNERS.register_module()
class Runner(MMEngineRunner):
    """mmengine's runner, which looks for the data and the checkpoint before it builds on them.

    It has :class:`LoadCheckpointHook` among its default hooks, as ``load_checkpoint``.
    With ``--launcher pytorch`` it also runs on CPUs, where mmengine's needs a GPU for each process.
    ``runner_type='mmrednet.Runner'`` in a config selects it.
    """

    def setup_env(self, env_cfg: dict) -> None:
        """Sets up the environment as mmengine does, and the processes of CPUs with gloo."""
        if self.distributed:
            connect_cpus()
        super().setup_env(env_cfg)

    def train(self) -> nn.Module:
        """Trains as mmengine does, after it has read the checkpoints that ``init_cfg`` of a RedNet names.

        mmengine reads them only when it has built the data sets, which takes minutes for large ones.

        Raises:
            OSError: A checkpoint is no file, or cannot be downloaded.
            ImportError: A checkpoint's format needs a package that is not installed.
            ValueError: A checkpoint cannot be read or does not fit.
        """
        for module in self.model.modules():
            if isinstance(module, RedNet):
                module.check_checkpoints()
        return super().train()

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wraps the model for distributed training as mmengine does; on CPUs without the GPU's number."""
        if self.distributed and get_device() == 'cpu':
            model = self._without_sync_bn(model)
            unused = self.cfg.get('find_unused_parameters', False)
            defaults = dict(device_ids=None, broadcast_buffers=False, find_unused_parameters=unused)
            model_wrapper_cfg = {**defaults, **(model_wrapper_cfg or {})}
        return super().wrap_model(model_wrapper_cfg, model)

    def _without_sync_bn(self, model: nn.Module) -> nn.Module:
        """PyTorch synchronises BatchNorm on GPUs only, and would stop in the first iteration."""
        asked_for = self.cfg.pop('sync_bn', None)
        if asked_for or any('SyncBatchNorm' in type(module).__name__ for module in model.modules()):
            print_log(
                'SyncBN needs GPUs: on CPUs its layers are BatchNorm, and each process has the statistics of its own '
                'images',
                logger='current',
                level=WARNING,
            )
        return revert_sync_batchnorm(model)

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict:
        """Loads a checkpoint as mmengine does, and from wherever :func:`mmrednet.checkpoint.load` reads one."""
        return super().load_checkpoint(f'{READ_HERE}{filename}', *args, **kwargs)

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """Registers mmengine's default hooks and the one that checks checkpoints."""
        hooks = dict(hooks or {})
        hook = hooks.pop('load_checkpoint', {})
        if isinstance(hook, dict):  # a config needs to name what differs only
            hook = {'type': 'mmrednet.LoadCheckpointHook', **hook}
        if hook is not None:  # as mmengine's, it is left out by None
            hooks['load_checkpoint'] = hook
        super().register_default_hooks(hooks)

    @staticmethod
    def build_dataloader(dataloader, *args, **kwargs):
        """Builds a dataloader as mmengine does.

        Raises:
            FileNotFoundError: A file of its data sets is missing; the message names a data root where nothing is.
        """
        try:
            return MMEngineRunner.build_dataloader(dataloader, *args, **kwargs)
        except FileNotFoundError:
            _check_data_root(dataloader.get('dataset'))
            raise

    @classmethod
    def from_cfg(cls, cfg) -> 'Runner':
        """Builds the runner from a config as mmengine does.

        Raises:
            FileNotFoundError: ``load_from`` is a path where no file is.
            ValueError: The config has ``rednet50_checkpoint``, a former variable that would have no effect.
        """
        if (checkpoint := cfg.get('rednet50_checkpoint')) is not None:
            raise ValueError(
                f'rednet50_checkpoint, which is {checkpoint!r}, is no setting: give where the backbone starts from as '
                f'model.backbone.init_cfg.checkpoint (`--cfg-options model.backbone.init_cfg.checkpoint={checkpoint}`)'
            )
        load_from = cfg.get('load_from')
        if load_from is not None and missing(str(load_from)):
            raise FileNotFoundError(
                f'load_from (or --checkpoint) names the checkpoint {load_from!r}, where no file is: '
                'give the path or address of a checkpoint'
            )
        return super().from_cfg(cfg)


def _check_data_root(dataset) -> None:
    """Looks for the data root of a data set's config and of those that it wraps."""
    if isinstance(dataset, (list, tuple)):
        for item in dataset:
            _check_data_root(item)
    if not isinstance(dataset, dict):
        return
    for key in ('dataset', 'datasets'):
        _check_data_root(dataset.get(key))
    root = dataset.get('data_root')
    # What backend_args name knows whether it is there, under its own path.
    if root and '://' not in str(root) and not dataset.get('backend_args') and not os.path.isdir(root):
        raise FileNotFoundError(
            f'data_root of the data set {dataset.get("type")} is {root!r}, where no folder is: '
            'put the data there, link it there, or set data_root in the config'
        )
