"""Functions that run in a process of their own. If they crash it, what they had found before is kept.

The process writes lines of JSON: first the list of the functions' names, then what each function returns. This module
needs the standard library alone.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

TIME_IS_UP = 'its time was up'

Item = tuple[str, Callable[[], object]]  # a name, and a function that returns a value for JSON


class Outcome(NamedTuple):
    """What a process has found.

    Args:
        planned (list[str]): The names of its functions.
        found (list): The results of the first of them. The results of the others are missing.
        end (str): ``TIME_IS_UP``, the signal or the exit status that ended the process early. '' after a normal end.
        error (str): The last error that the process wrote. '' if it wrote none.
    """

    planned: list[str]
    found: list
    end: str
    error: str


class Worker:
    """A process that calls a function for its items, runs them in order, and writes down what they return.

    Args:
        function (Callable): A function of a module. It returns the items.
        arguments (Sequence): Its arguments. ``eval(repr(...))`` must give them back.
        folder (str or Path): A folder for the output of the process.
        prefix (Sequence[str]): A command that runs the process, such as a debugger. Defaults to none.
        environment (Mapping[str, str]): Variables that are set for the process. Defaults to none.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Item]],
        arguments: Sequence[object],
        folder: str | Path,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] = {},
    ) -> None:
        self._out, self._err = Path(folder, 'stdout'), Path(folder, 'stderr')
        code = f'from {__name__} import serve; serve{(function.__module__, function.__name__, *arguments)!r}'
        with self._out.open('w') as out, self._err.open('w') as err:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, '-c', code],
                stdout=out,
                stderr=err,
                env={**os.environ, **environment},
                preexec_fn=os.setpgrp,
            )
        self._end = TIME_IS_UP

    def wait(self, deadline: float) -> None:
        """Waits until the process ends, or until ``time.monotonic()`` reaches ``deadline``."""
        with suppress(subprocess.TimeoutExpired):
            status = self._process.wait(max(0.0, deadline - time.monotonic()))
            self._end = '' if status == 0 else signal.Signals(-status).name if status < 0 else f'exit status {status}'

    def stop(self) -> None:
        """Ends the process and all processes that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a process that waits for a driver cannot be ended
            self._process.wait(10)

    def outcome(self) -> Outcome:
        """Returns what the process has found."""
        lines = []
        for line in self._out.read_text().splitlines():
            with suppress(json.JSONDecodeError):  # the last line may be cut off
                lines.append(json.loads(line))
        written = [line.strip() for line in self._err.read_text().splitlines() if line.strip()]
        # torch adds lines after its error.
        errors = [line for line in written if 'Error: ' in line] or written
        return Outcome(lines[0] if lines else [], lines[1:], self._end, errors[-1] if errors else '')


def serve(module: str, function: str, *arguments: object) -> None:
    """Runs in the process: gets the items from a function of a module, runs them and writes what they return."""
    lines = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what packages print must not mix with the findings
    items = getattr(import_module(module), function)(*arguments)
    print(json.dumps([name for name, _ in items]), file=lines, flush=True)
    for _, run in items:
        print(json.dumps(run()), file=lines, flush=True)
