"""A run keeps its last good checkpoint, and resumes from it, whatever happens while the next is written."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import small_disk
from mmengine.fileio import BaseStorageBackend, FileClient, LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from test_engine.toy import build_runner

from mmrednet.engine import CheckpointHook
from mmrednet.files import TEMPORARY


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.endswith('.pth'))


def load(path):
    return torch.load(path, weights_only=True)


def resume(folder, epochs, **options):
    runner = build_runner(folder, epochs, resume=True, **options)
    runner.train()
    return runner


@pytest.fixture
def full_disk(monkeypatch):
    """Returns a function. After its call only half of a checkpoint of the given name fits on the disk."""
    put = LocalBackend.put

    def fill(name):
        def put_half(self, content, path):
            if Path(path).name != name:
                return put(self, content, path)
            put(self, content[: len(content) // 2], path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        monkeypatch.setattr(LocalBackend, 'put', put_half)

    yield fill


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, full_disk):
    full_disk('epoch_3.pth')
    keep_one = dict(max_keep_ckpts=1)
    with pytest.raises(OSError, match=r'epoch_3.pth cannot be written .*No space left.*--resume'):
        build_runner(tmp_path, 4, keep_one).train()
    assert names(tmp_path) == ['epoch_2.pth']
    assert not list(tmp_path.glob('.*'))
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_2.pth')
    full_disk(None)
    runner = resume(tmp_path, 4, checkpoint=keep_one)
    assert (runner.epoch, names(tmp_path)) == (4, ['epoch_4.pth'])


def test_a_disk_that_is_really_full(tmp_path):
    """It has room for two checkpoints, and then for one and a half."""
    with small_disk(tmp_path / 'disk', 3 << 20) as disk:
        # Weights and momentum: 1 MiB a checkpoint. The log is on another disk.
        options = dict(checkpoint=dict(max_keep_ckpts=1, out_dir=str(disk)), width=2**17 // 11)
        folder, saved = tmp_path / 'run', disk / 'run'
        build_runner(folder, 2, **options).train()
        assert names(saved) == ['epoch_2.pth']
        room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / 'other').write_bytes(bytes(room - 2**19))
        with pytest.raises(OSError, match=r'epoch_3.pth cannot be written .*No space left'):
            resume(folder, 4, **options)
        assert names(saved) == ['epoch_2.pth']
        (disk / 'other').unlink()
        assert resume(folder, 4, **options).epoch == 4


@pytest.mark.parametrize('name', ('epoch_3.pth', 'best_acc_epoch_3.pth'))
def test_a_kill_while_a_checkpoint_is_written(tmp_path, name):
    best = dict(max_keep_ckpts=1, save_best='acc')
    reader, writer = os.pipe()
    put = LocalBackend.put

    def put_half(self, content, path):
        if Path(path).name == name:
            content = content[: len(content) // 2]
        put(self, content, path)
        if Path(path).name == name:
            os.write(writer, b'half')
            signal.pause()

    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            LocalBackend.put = put_half
            build_runner(tmp_path, 3, best, scores=(1, 2, 3)).train()
        finally:
            os.write(writer, b'none')
            os._exit(1)
    assert os.read(reader, 4) == b'half'
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    assert list(tmp_path.glob(f'{TEMPORARY}*/{name}'))
    written = 'epoch_2.pth' if name == 'epoch_3.pth' else 'epoch_3.pth'
    assert names(tmp_path) == ['best_acc_epoch_2.pth', written]
    resume(tmp_path, 4, checkpoint=best, scores=(4, 5))
    # The half-written file is gone as well.
    assert not list(tmp_path.glob('.*'))
    assert names(tmp_path) == ['best_acc_epoch_4.pth', 'epoch_4.pth']


def test_the_order_is_checkpoint_then_last_checkpoint_then_deletion(tmp_path, monkeypatch):
    build_runner(tmp_path, 1, dict(max_keep_ckpts=1)).train()
    events = []
    replace, remove = os.replace, LocalBackend.remove

    def note_replace(source, target):
        replace(source, target)
        events.append(('written', Path(target).name, names(tmp_path)))

    def note_remove(self, path):
        events.append(('deleted', Path(path).name, (tmp_path / 'last_checkpoint').read_text()))
        remove(self, path)

    monkeypatch.setattr(os, 'replace', note_replace)
    monkeypatch.setattr(LocalBackend, 'remove', note_remove)
    resume(tmp_path, 2, checkpoint=dict(max_keep_ckpts=1))
    both = ['epoch_1.pth', 'epoch_2.pth']
    assert events == [
        ('written', 'epoch_2.pth', both),
        ('written', 'last_checkpoint', both),
        ('deleted', 'epoch_1.pth', str(tmp_path / 'epoch_2.pth')),
    ]


def test_what_a_killed_run_did_not_delete_goes_when_it_is_resumed(tmp_path, monkeypatch):
    keep_one = dict(max_keep_ckpts=1)
    build_runner(tmp_path, 1, keep_one).train()
    monkeypatch.setattr(CheckpointHook, '_delete', lambda self, path: None)
    resume(tmp_path, 2, checkpoint=keep_one)
    monkeypatch.undo()
    assert names(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']
    resume(tmp_path, 2, checkpoint=keep_one)
    assert names(tmp_path) == ['epoch_2.pth']


def test_the_best_checkpoint_remains_until_the_next_is_written(tmp_path, full_disk):
    best = dict(save_best='acc', max_keep_ckpts=1)
    full_disk('best_acc_epoch_3.pth')
    with pytest.raises(OSError, match='best_acc_epoch_3.pth cannot be written'):
        build_runner(tmp_path, 3, best, scores=(1, 0, 2)).train()
    assert names(tmp_path) == ['best_acc_epoch_1.pth', 'epoch_3.pth']
    full_disk(None)
    resume(tmp_path, 5, checkpoint=best, scores=(0.5, 3))
    assert names(tmp_path) == ['best_acc_epoch_5.pth', 'epoch_5.pth']


def test_the_best_checkpoints_of_two_metrics(tmp_path):
    best = dict(save_best=['acc', 'loss'], rule=['greater', 'less'], max_keep_ckpts=1)
    runner = build_runner(tmp_path, 3, best, scores=(1, 2, 0))
    (metric,) = runner.val_loop.evaluator.metrics
    scores = iter((1, 2, 0))
    metric.compute_metrics = lambda results: dict.fromkeys(('acc', 'loss'), next(scores))
    runner.train()
    assert names(tmp_path) == ['best_acc_epoch_2.pth', 'best_loss_epoch_3.pth', 'epoch_3.pth']


def test_a_copied_run_leaves_the_original_as_it_is(tmp_path):
    """The path of the best checkpoint in the copy is that of the original."""
    best = dict(save_best='acc', max_keep_ckpts=1)
    build_runner(tmp_path / 'a', 1, best, scores=(1,)).train()
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')
    resume(tmp_path / 'b', 2, checkpoint=best, scores=(2,))
    assert names(tmp_path / 'a') == ['best_acc_epoch_1.pth', 'epoch_1.pth']
    assert names(tmp_path / 'b') == ['best_acc_epoch_2.pth', 'epoch_2.pth']


def test_training_by_iterations(tmp_path):
    options = dict(checkpoint=dict(by_epoch=False, interval=2, max_keep_ckpts=2))
    loop = dict(by_epoch=False, val_interval=100)
    build_runner(tmp_path, train_cfg=dict(max_iters=8, **loop), **options).train()
    assert names(tmp_path) == ['iter_6.pth', 'iter_8.pth']
    (tmp_path / 'iter_8.pth').write_bytes(b'')
    runner = resume(tmp_path, None, train_cfg=dict(max_iters=10, **loop), **options)
    assert runner.iter == 10
    assert load(tmp_path / 'iter_10.pth')['meta']['iter'] == 10


@pytest.mark.parametrize('kind', ('CheckpointHook', 'mmengine.CheckpointHook', MMEngineCheckpointHook))
@pytest.mark.parametrize('where', ('default_hooks', 'custom_hooks'))
def test_our_hook_takes_the_place_of_mmengines(tmp_path, kind, where):
    hook = dict(type=kind, interval=7)
    custom = dict(default_hooks=dict(checkpoint=None), custom_hooks=[hook])
    options = dict(default_hooks=dict(checkpoint=hook)) if where == 'default_hooks' else custom
    (found,) = (hook for hook in build_runner(tmp_path, **options).hooks if isinstance(hook, MMEngineCheckpointHook))
    assert type(found) is CheckpointHook and found.interval == 7


def test_another_backend_than_the_disk_writes_as_before(tmp_path):
    written = {}

    @register_backend('toy', force=True, prefixes='toy')
    class Store(BaseStorageBackend):
        """An object store in memory: it has no folders and cannot rename."""

        get = get_text = written.get
        isfile = written.__contains__
        remove = written.pop

        def put(self, content, path):
            written[path] = content

        def join_path(self, *parts):
            return '/'.join(parts)

    FileClient.register_backend('toy', Store, force=True, prefixes='toy')
    build_runner(tmp_path, 3, dict(out_dir='toy://bucket', max_keep_ckpts=1)).train()
    assert [*written] == [f'toy://bucket/{tmp_path.name}/epoch_3.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == f'toy://bucket/{tmp_path.name}/epoch_3.pth'
    assert not names(tmp_path)


# Resuming.


@pytest.fixture
def run(tmp_path):
    build_runner(tmp_path / 'run', 3).train()
    return tmp_path / 'run'


@pytest.mark.parametrize('damage', ('truncated', 'empty', 'deleted', 'overwritten'))
def test_a_damaged_checkpoint_is_skipped(run, damage, capsys):
    newest = run / 'epoch_3.pth'
    content = newest.read_bytes()
    if damage == 'deleted':
        newest.unlink()
    else:
        newest.write_bytes({'truncated': content[:-100], 'empty': b'', 'overwritten': bytes(len(content))}[damage])
    runner = resume(run, 4)
    assert (runner._load_from, runner.epoch) == (str(run / 'epoch_2.pth'), 4)
    assert (f'resuming skips the checkpoint {newest}' in capsys.readouterr().out) == (damage != 'deleted')


def test_a_run_that_was_moved_is_resumed(run):
    moved = run.rename(run.parent / 'moved')
    runner = resume(moved, 4)
    assert (runner._load_from, runner.epoch) == (str(moved / 'epoch_3.pth'), 4)
    assert (moved / 'last_checkpoint').read_text() == str(moved / 'epoch_4.pth')


def test_a_run_that_was_copied_goes_on_from_its_own_file(run):
    copy = shutil.copytree(run, run.parent / 'copy')
    assert resume(copy, 4)._load_from == str(copy / 'epoch_3.pth')


def test_checkpoints_in_another_folder(tmp_path):
    options = dict(checkpoint=dict(out_dir=str(tmp_path / 'out')))
    build_runner(tmp_path / 'run', 2, **options).train()
    saved = tmp_path / 'out' / 'run'
    (saved / 'epoch_2.pth').write_bytes(b'')
    runner = resume(tmp_path / 'run', 3, **options)
    assert (runner._load_from, runner.epoch) == (str(saved / 'epoch_1.pth'), 3)


def test_checkpoints_of_an_earlier_run_in_the_folder_are_not_resumed(run):
    (run / 'last_checkpoint').write_text(str(run / 'epoch_2.pth'))
    (run / 'epoch_2.pth').write_bytes(b'')
    assert resume(run, 3)._load_from == str(run / 'epoch_1.pth')


@pytest.mark.parametrize('last', (None, '', '\0\0\0', 'x' * 5000, '../../../etc/passwd'))
def test_a_useless_last_checkpoint(run, last):
    (run / 'last_checkpoint').unlink()
    if last is not None:
        (run / 'last_checkpoint').write_text(last)
    assert resume(run, 4)._load_from == str(run / 'epoch_3.pth')


def test_a_run_without_any_checkpoint_starts_at_the_beginning(tmp_path):
    assert resume(tmp_path, 2).epoch == 2


def test_no_checkpoint_that_can_be_read(run):
    for path in run.glob('*.pth'):
        path.write_bytes(b'')
    with pytest.raises(FileNotFoundError, match=r'no checkpoint that can be resumed .*3 files.*delete last_checkpoint'):
        resume(run, 4)


def test_a_path_that_is_given_is_taken_as_it_is(run):
    (run / 'epoch_3.pth').write_bytes(b'')
    with pytest.raises(ValueError, match='epoch_3.pth'):
        resume(run, 4, load_from=str(run / 'epoch_3.pth'))


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path):
    command = [sys.executable, Path(__file__).with_name('kills.py'), tmp_path, '20']
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout.splitlines()[-1])
    assert counts['kills'] == 20 and counts['while_writing'] > 0
    assert counts['equal']
