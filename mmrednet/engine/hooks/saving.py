"""The hook that saves checkpoints and deletes old ones."""

import shutil
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook

from ...files import TEMPORARY, replacing
from ...registry import HOOKS


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's ``CheckpointHook`` with the same arguments, but it deletes old checkpoints last.

    It writes the new checkpoint, then ``last_checkpoint``, and then deletes the old checkpoint. mmengine deletes the
    old one first: with ``max_keep_ckpts=1`` or ``save_best``, a full disk or a kill then leaves no checkpoint.
    :class:`mmrednet.engine.Runner` uses this hook wherever a config names mmengine's.
    """

    file_backend: Any
    best_ckpt_path: str | None

    def before_train(self, runner) -> None:
        """Prepares the folder as mmengine does, and deletes temporary files that a killed process left there."""
        super().before_train(runner)
        # The stored paths of the best checkpoints are absolute, and a resumed run may have been moved or copied.
        if best := getattr(self, 'best_ckpt_path', None):
            self.best_ckpt_path = self._in_out_dir(best)
        for name, path in getattr(self, 'best_ckpt_path_dict', {}).items():
            self.best_ckpt_path_dict[name] = path and self._in_out_dir(path)
        if is_main_process():
            for folder in {self.out_dir, runner.work_dir}:
                for temporary in Path(folder).glob(f'{TEMPORARY}*'):
                    shutil.rmtree(temporary, ignore_errors=True)

    def _in_out_dir(self, path: str) -> str:
        return self.file_backend.join_path(self.out_dir, Path(path).name)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        outdated: list[int] = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            kept = [*self.keep_ckpt_ids, step]
            outdated = kept[: -self.max_keep_ckpts]
            self.keep_ckpt_ids.append(step)
            # This list includes outdated ones. If the run is killed before it deletes them, `before_train` does it.
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        with replacing(Path(runner.work_dir, 'last_checkpoint')) as part:
            part.write_text(self.last_ckpt)
        for old in outdated:
            self._delete(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))

    def _delete(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # DeepSpeed's checkpoints are folders
            self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        if not self.save_best:
            return
        backend = self.file_backend
        self.file_backend = deferred = _DeferredDeletions(backend)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        best = {getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()}
        for path in deferred.paths:
            if path not in best:
                self._delete(path)


class _DeferredDeletions:
    """A file backend that collects the paths to delete instead of deleting them."""

    def __init__(self, backend) -> None:
        self._backend = backend
        self.paths: list[str] = []

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.paths.append(path)

    rmtree = remove
