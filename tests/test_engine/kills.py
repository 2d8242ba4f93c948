"""Kills a small training at random moments, resumes it, and compares its result with that of an uninterrupted one.

    python kills.py FOLDER KILLS

Every second kill waits until a checkpoint is being written. The last line of the output has the counts as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from test_engine.toy import Network, build_runner

from mmrednet.files import TEMPORARY

EPOCHS = 300
WIDTH = 2**16  # 5 MiB a checkpoint
# With a larger learning rate, this wide network diverges.
OPTIMIZER = dict(optimizer=dict(type='SGD', lr=1e-4, momentum=0.9))


def start(folder):
    """Starts or resumes the training in a child process, and returns its process id."""
    child = os.fork()
    if not child:
        try:
            options = dict(width=WIDTH, optim_wrapper=OPTIMIZER, resume=True)
            runner = build_runner(folder, EPOCHS, dict(max_keep_ckpts=1), **options)
            runner.train()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def is_writing(folder):
    try:
        return any(folder.glob(f'{TEMPORARY}*/epoch_*'))
    except FileNotFoundError:  # The temporary folder was deleted in between.
        return False


def kill_after(child, folder, seconds, while_writing):
    time.sleep(seconds)
    deadline = time.monotonic() + 60
    while while_writing and not is_writing(folder) and time.monotonic() < deadline:
        time.sleep(0.0001)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, 'the training ended before it was killed'


def main(root, kills):
    torch.set_num_threads(1)
    begin = time.monotonic()
    assert os.waitpid(start(root / 'whole'), 0)[1] == 0
    seconds = time.monotonic() - begin
    counts = dict(kills=0, while_writing=0)
    folder = root / 'killed'
    for i in range(kills):
        kill_after(start(folder), folder, random.uniform(0, 1.5 * seconds / kills), i % 2)
        counts['kills'] += 1
        counts['while_writing'] += is_writing(folder)
    assert os.waitpid(start(folder), 0)[1] == 0
    names = [sorted(path.name for path in run.glob('*.pth')) for run in (root / 'whole', folder)]
    assert names == [[f'epoch_{EPOCHS}.pth']] * 2, names
    one, two = (torch.load(run / names[0][0], weights_only=True) for run in (root / 'whole', folder))
    for name, value in Network(WIDTH).state_dict().items():
        end = one['state_dict'][name]
        assert end.isfinite().all(), name
        # The gradient of the bias before BatchNorm is zero.
        assert name == 'layers.0.bias' or not end.equal(value), name
    for key in ('state_dict', 'optimizer'):
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=0)
    assert two['param_schedulers'] == one['param_schedulers']
    print(json.dumps({**counts, 'epochs': EPOCHS, 'equal': True}))


if __name__ == '__main__':
    main(Path(sys.argv[1]), int(sys.argv[2]))
