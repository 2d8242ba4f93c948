"""The hook that shows a progress bar."""

import sys
from datetime import timedelta
from shutil import get_terminal_size
from time import monotonic

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from ...registry import HOOKS

# The bar leaves the cursor in the first column, so that the next line of the log, which is longer, replaces it.
LONGEST = 60
BAR = 15


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """Shows the progress of training, validation and testing in one line if the output is a terminal."""

    priority = 'ABOVE_NORMAL'

    def __init__(self) -> None:
        # For each mode: the time and the number of finished iterations at its start, and the number at its end.
        # Training by iterations is a single epoch that contains the validations.
        self._begun: dict[str, tuple[float, int, int]] = {}

    def _before_epoch(self, runner, mode: str = 'train') -> None:
        if not is_main_process() or not sys.stdout.isatty():
            return
        if mode == 'train' and isinstance(runner.train_loop, IterBasedTrainLoop):
            self._begun[mode] = monotonic(), runner.iter, runner.max_iters
        else:
            self._begun[mode] = monotonic(), 0, len(getattr(runner, f'{mode}_dataloader'))

    def _after_iter(self, runner, batch_idx: int, data_batch=None, outputs=None, mode: str = 'train') -> None:
        if mode in self._begun:
            time, begin, total = self._begun[mode]
            line = format_progress(mode, begin, batch_idx + 1, total, monotonic() - time, get_terminal_size().columns)
            sys.stdout.write(f'\r{line}\r')
            sys.stdout.flush()

    def _after_epoch(self, runner, mode: str = 'train') -> None:
        if self._begun.pop(mode, None):
            sys.stdout.write('\n')


def format_progress(mode: str, begin: int, done: int, total: int, seconds: float, columns: int) -> str:
    """Returns a line such as ``train [>>>>>          ] 270/800, 3.4 it/s, 0:02:36 left``.

    ``done - begin`` iterations have taken ``seconds``. ``columns`` is the width of the terminal. The line is padded
    with spaces to at most one column less.
    """
    rate = (done - begin) / max(seconds, 1e-9)
    left = timedelta(seconds=round((total - done) / rate))
    marks = '>' * (BAR * done // total)
    line = f'{mode} [{marks:{BAR}}] {done}/{total}, {rate:.1f} it/s, {left} left'
    width = min(columns - 1, LONGEST)
    return f'{line[:width]:{width}}'
