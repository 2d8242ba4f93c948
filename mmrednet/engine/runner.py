"""The runner of our configs: it reports missing data and checkpoints early, and keeps the last good checkpoint."""

import atexit
from logging import WARNING
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, is_distributed, is_main_process, master_only
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import HOOKS
from mmengine.runner import Runner as MMEngineRunner
from torch import nn

from ..checkpoint import OUR_READER, is_missing_file
from ..errors import one_line
from ..files import replacing
from ..models.backbone import Backbone
from ..registry import RUNNERS
from .datasets import explain
from .hooks import CheckpointHook
from .resuming import find_checkpoint


def connect_cpus() -> None:
    """Connects the processes of a run on CPUs with gloo; mmengine requires a GPU for each process."""
    if get_device() == 'cpu' and not is_distributed():
        torch.distributed.init_process_group('gloo')
        # Threads of gloo that still run when the process ends may abort it.
        atexit.register(_disconnect)


def _disconnect() -> None:
    if is_distributed():
        torch.distributed.destroy_process_group()


# Our additions to mmengine's default hooks.
DEFAULT_HOOKS = {
    'load_checkpoint': 'LoadCheckpointHook',
    'check_classes': 'CheckClassesHook',
    'check_data': 'CheckDataHook',
}


@RUNNERS.register_module()
class Runner(MMEngineRunner):
    """mmengine's runner with checks of data, classes and checkpoints. ``runner_type='mmrednet.Runner'`` selects it.

    - It reports missing data and checkpoints before it builds data sets.
    - Its default hooks include :class:`LoadCheckpointHook`, as ``load_checkpoint``, :class:`CheckClassesHook`, as
      ``check_classes``, and :class:`CheckDataHook`, as ``check_data``. In ``default_hooks``, None leaves a hook out.
    - A checkpoint is written whole, and the previous one remains until then: see :class:`CheckpointHook`.
    - ``resume=True`` skips checkpoints that cannot be read: see :func:`mmrednet.engine.resuming.find_checkpoint`.
    - ``--launcher pytorch`` also runs on CPUs; mmengine's runner requires a GPU for each process.
    """

    _load_from: str | None

    def setup_env(self, env_cfg: dict) -> None:
        """Sets up the environment as mmengine does, and connects processes on CPUs with gloo."""
        if self.distributed:
            connect_cpus()
        super().setup_env(env_cfg)

    def train(self) -> nn.Module:
        """Trains as mmengine does, but first reads the checkpoints that the ``init_cfg`` of a backbone names.

        mmengine reads them after it has built the data sets, which takes minutes if they are large.

        Raises:
            OSError: A checkpoint does not exist or cannot be downloaded.
            ImportError: A checkpoint's format needs a package that is not installed.
            ValueError: A checkpoint cannot be read or does not fit.
        """
        for module in self.model.modules():
            if isinstance(module, Backbone):
                module.check_checkpoints()
        return super().train()

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wraps the model for distributed training as mmengine does, on CPUs without ``device_ids``."""
        if self.distributed and get_device() == 'cpu':
            model = self._without_sync_bn(model)
            unused = self.cfg.get('find_unused_parameters', False)
            defaults = dict(device_ids=None, broadcast_buffers=False, find_unused_parameters=unused)
            model_wrapper_cfg = {**defaults, **(model_wrapper_cfg or {})}
        return super().wrap_model(model_wrapper_cfg, model)

    def _without_sync_bn(self, model: nn.Module) -> nn.Module:
        # PyTorch synchronises BatchNorm on GPUs only. On CPUs, the first iteration would raise an error.
        sync_bn = self.cfg.pop('sync_bn', None)
        if sync_bn or any('SyncBatchNorm' in type(module).__name__ for module in model.modules()):
            print_log(
                'SyncBN needs GPUs: on CPUs it is replaced by BatchNorm, whose statistics are those of each process '
                'alone',
                logger='current',
                level=WARNING,
            )
        return revert_sync_batchnorm(model)

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict:
        """Loads a checkpoint as mmengine does, in every format that :func:`mmrednet.checkpoint.load` can read."""
        return super().load_checkpoint(f'{OUR_READER}{filename}', *args, **kwargs)

    def load_or_resume(self) -> None:
        """Loads or resumes as mmengine does; without a path it resumes from the result of :func:`find_checkpoint`.

        Raises:
            FileNotFoundError: The run has checkpoints, but none can be read.
        """
        if self._resume and self._load_from is None and not self._has_loaded:
            templates = [hook.filename_tmpl for hook in self.hooks if isinstance(hook, MMEngineCheckpointHook)]
            found = [find_checkpoint(self.work_dir, *templates[:1]) if is_main_process() else None]
            broadcast_object_list(found)
            self._load_from = found[0]
        super().load_or_resume()

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, file_client_args: dict | None = None, **kwargs) -> None:
        """Saves a checkpoint as mmengine does, but a local file is written whole or not at all.

        Raises:
            OSError: The file cannot be written. An older file of that name is unchanged.
        """
        backend = get_file_backend(out_dir, backend_args=kwargs.get('backend_args'))
        if file_client_args is not None or not isinstance(backend, LocalBackend):
            super().save_checkpoint(out_dir, filename, file_client_args, **kwargs)
            return
        path = Path(out_dir, filename)
        try:
            with replacing(path) as part:
                super().save_checkpoint(str(part.parent), part.name, **kwargs)
        except OSError as error:
            raise OSError(
                f'the checkpoint {path} cannot be written ({one_line(error.__cause__ or error)}): free disk space or '
                'correct the permissions, then continue with --resume; the earlier checkpoints are unchanged'
            ) from error

    def register_hook(self, hook: Hook | dict, priority=None) -> None:
        """Registers a hook as mmengine does, but our :class:`CheckpointHook` in the place of mmengine's."""
        if isinstance(hook, dict):
            kind = hook.get('type')
            if (HOOKS.get(kind) if isinstance(kind, str) else kind) is MMEngineCheckpointHook:
                hook = {**hook, 'type': CheckpointHook}
        super().register_hook(hook, priority)

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """Registers mmengine's default hooks, and the hooks that check checkpoints, classes and data."""
        hooks = dict(hooks or {})
        for name, kind in DEFAULT_HOOKS.items():
            hook = hooks.pop(name, {})
            if isinstance(hook, dict):  # a config names only the arguments that differ
                hook = {'type': f'mmrednet.{kind}', **hook}
            if hook is not None:  # None leaves the hook out, as in mmengine
                hooks[name] = hook
        super().register_default_hooks(hooks)

    @staticmethod
    def build_dataloader(dataloader, *args, **kwargs):
        """Builds a dataloader as mmengine does.

        Raises:
            FileNotFoundError: A file of its data sets or a whole ``data_root`` is missing.
            ValueError: Its data sets cannot be built.
        """
        try:
            return MMEngineRunner.build_dataloader(dataloader, *args, **kwargs)
        except Exception as error:  # a data set can raise anything
            explain(dataloader.get('dataset'), error)
            raise

    @classmethod
    def from_cfg(cls, cfg) -> 'Runner':
        """Builds the runner from a config as mmengine does.

        Raises:
            FileNotFoundError: ``load_from`` is the path of a file that does not exist.
        """
        load_from = cfg.get('load_from')
        if load_from is not None and is_missing_file(str(load_from)):
            raise FileNotFoundError(
                f'load_from (or --checkpoint) names the checkpoint {load_from!r}, which does not exist: '
                'give the path or URL of a checkpoint'
            )
        return super().from_cfg(cfg)
