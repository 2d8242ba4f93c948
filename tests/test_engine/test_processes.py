"""Processes of a training that die: a data loader's worker, and one of several that train together."""

import os
import signal
import subprocess
import sys
import time

import pytest
from test_engine.test_distributed import free_port
from test_engine.test_saving import names, resume
from test_engine.toy import Numbers, build_runner

from mmrednet.checkpoint import load


class DyingNumbers(Numbers):
    """Ends the process that reads number 3, from a given reading on."""

    def __init__(self, parent, flag):
        super().__init__(parent=parent, flag=flag)

    def __getitem__(self, index):
        if index == 3 and os.getpid() != self.parent and self.flag.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_dead_worker_ends_the_run_with_an_error(tmp_path):
    """The checkpoints that were written before are whole, and the run is resumed from the last of them."""
    flag, begin = tmp_path / 'flag', time.monotonic()
    build_runner(tmp_path, 2).train()
    flag.touch()
    runner = build_runner(tmp_path, 4, train=DyingNumbers(os.getpid(), flag), resume=True)
    runner._train_dataloader['num_workers'] = 1
    with pytest.raises(RuntimeError, match='DataLoader worker .* exited unexpectedly|killed by signal'):
        runner.train()
    assert time.monotonic() - begin < 60
    assert names(tmp_path)[-1] == 'epoch_2.pth'
    assert resume(tmp_path, 3).epoch == 3


# One of two processes that train together. The second one dies at the beginning of the third epoch.
CODE = """
import os, signal, sys
from pathlib import Path
from mmengine.hooks import Hook
from test_engine.toy import build_runner

class Death(Hook):
    def before_train_epoch(self, runner):
        if runner.epoch == 2 and os.environ['RANK'] == '1':
            os.kill(os.getpid(), signal.SIGKILL)

runner = build_runner(Path(sys.argv[1]), 5, launcher='pytorch')
runner.register_hook(Death())
runner.train()
"""


@pytest.mark.full
def test_a_dead_process_ends_the_others(tmp_path):
    address = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()), WORLD_SIZE='2')
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', CODE, str(tmp_path)],
            env={**os.environ, **address, 'RANK': rank, 'LOCAL_RANK': rank, 'PYTHONPATH': os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in '01'
    ]
    try:
        processes[1].communicate(timeout=300)
        assert processes[1].returncode == -signal.SIGKILL
        error = processes[0].communicate(timeout=60)[1]
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode == 1 and 'Error' in error.splitlines()[-1], error
    assert names(tmp_path)[-1] == 'epoch_2.pth'
    assert load(str(tmp_path / 'epoch_2.pth'))['state_dict']
