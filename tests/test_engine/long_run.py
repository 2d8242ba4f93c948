"""Trains the demo's detector on images of changing size, and measures whether the process grows or slows down.

    python long_run.py FOLDER MINUTES

Each epoch starts new data loader workers and writes a checkpoint. After each epoch a line of JSON is appended to
FOLDER/samples.jsonl. At the end, a table has the slope of each quantity by least squares, per hour and with its
standard error. It leaves out the first fifth of the epochs, in which the memory allocator and the caches fill.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS

from mmrednet.formatting import markdown_table
from mmrednet.ops.backends import cuda

ROOT = Path(__file__).parents[2]
SIZES = (48, 64, 80, 96, 112)  # pixels
QUANTITIES = ('memory in MiB', 'open files', 'threads', 'compiled modules', 'CPU seconds of a step')


class SampleHook(Hook):
    """Writes a sample after each epoch, and ends the training when its time is over."""

    def __init__(self, file: Path, seconds: float) -> None:
        self.file, self.begin, self.seconds, self.steps = file, time.monotonic(), seconds, []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Starts the clock of a step."""
        self.steps.append(-time.process_time())

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Stops the clock of a step."""
        self.steps[-1] += time.process_time()

    def after_train_epoch(self, runner):
        """Appends a sample."""
        minutes = (time.monotonic() - self.begin) / 60
        sample = dict(zip(QUANTITIES, measure(self.steps), strict=True))
        with self.file.open('a') as file:
            print(json.dumps(dict(minutes=minutes, steps=len(self.steps), **sample)), file=file)
        self.steps = []
        runner.train_loop.stop_training = minutes * 60 >= self.seconds


def measure(steps):
    """Returns the QUANTITIES of this process now."""
    status = Path('/proc/self/status').read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith('VmRSS'))
    libraries = {line.split()[-1] for line in Path('/proc/self/maps').read_text().splitlines()}
    # Native libraries on the CPU, and modules of CUDA kernels on a GPU.
    modules = sum(Path(path).name.startswith('operators-') for path in libraries) + cuda._function.cache_info().currsize
    count = [len([*Path('/proc/self', name).iterdir()]) for name in ('fd', 'task')]
    return resident / 1024, *count, modules, float(np.mean(steps))


def build(folder, minutes):
    """Returns a runner of the demo's config with images of all SIZES."""
    config = Config.fromfile(ROOT / 'configs' / 'mmdet' / 'faster_rcnn_rednet50_invfpn_demo.py')
    pipeline = config.train_dataloader.dataset.pipeline
    pipeline[2] = dict(type='RandomChoiceResize', scales=[(size, size) for size in SIZES], keep_ratio=True)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(batch_size=4, persistent_workers=False)
        loader.dataset.data_root = f'{folder}/data/'
    for evaluator in (config.val_evaluator, config.test_evaluator):
        evaluator.ann_file = f'{folder}/data/annotations/instances_val2017.json'
    config.train_cfg.update(max_epochs=10**6, val_interval=5)
    config.work_dir = str(folder / 'run')
    runner = RUNNERS.get(config.runner_type).from_cfg(config)
    runner.register_hook(SampleHook(folder / 'samples.jsonl', 60 * minutes))
    return runner


def report(samples):
    """Returns a table of the slope of each quantity."""
    settled = samples[len(samples) // 5 :]
    hours = np.array([sample['minutes'] for sample in settled]) / 60
    rows = []
    for name in QUANTITIES:
        values = np.array([sample[name] for sample in settled], dtype=float)
        (slope, _), covariance = np.polyfit(hours, values, 1, cov='unscaled')
        residual = values - np.polyval(np.polyfit(hours, values, 1), hours)
        error = (covariance[0, 0] * (residual**2).sum() / (len(values) - 2)) ** 0.5
        figures = (samples[0][name], values[0], values[-1], slope, error)
        rows.append([name, *(f'{round(figure, 6):.4g}' for figure in figures)])
    steps = sum(sample['steps'] for sample in samples)
    head = f'{len(samples)} epochs, {steps} steps, {samples[-1]["minutes"]:.0f} minutes'
    return f'{head}\n\n' + markdown_table(
        ['quantity', 'first epoch', 'after a fifth', 'last epoch', 'slope per hour', 'standard error'], rows
    )


def main(folder, minutes):
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, ROOT / 'tools' / 'make_demo_data.py', '--train', '80', '--val', '8']
    subprocess.run([*command, '--out', folder / 'data'], check=True)
    build(folder, minutes).train()
    print(report([json.loads(line) for line in (folder / 'samples.jsonl').read_text().splitlines()]))


if __name__ == '__main__':
    main(Path(sys.argv[1]).absolute(), float(sys.argv[2]))
