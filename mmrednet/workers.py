"""Runs functions in separate processes. If a process crashes, its earlier results are kept.

A process writes lines of JSON: first the list of its functions' names, then the result of each function. This module
needs the standard library alone.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

TIME_IS_UP = 'its time was up'

Item = tuple[str, Callable[[], object]]  # a name, and a function that returns a value for JSON


class Job(NamedTuple):
    """The work of a process: it gets its items from a function, runs them in order, and writes their results."""

    function: Callable[..., Sequence[Item]]  # at the top level of a module
    arguments: Sequence[object] = ()  # `eval(repr(...))` must give them back


class Outcome(NamedTuple):
    """The results of a process."""

    planned: list[str]  # the names of its functions
    found: list  # the results of the first of them
    end: str  # `TIME_IS_UP`, the signal or the exit status that ended it early, or ''
    error: str  # the last error that it wrote, or ''


def run_jobs(jobs: Sequence[Job], seconds: float) -> list[Outcome]:
    """Runs jobs side by side. When the time is up, the processes end with all processes that they have started."""
    deadline = time.monotonic() + seconds
    running = []
    with tempfile.TemporaryDirectory() as folder:
        files = [(Path(folder, f'{i}.out'), Path(folder, f'{i}.err')) for i in range(len(jobs))]
        try:
            for job, (out, err) in zip(jobs, files, strict=True):
                running.append(_start(job, out, err))
            ends = [_wait(process, deadline) for process in running]
        finally:
            for process in running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with suppress(subprocess.TimeoutExpired):  # a process that waits for a driver cannot be ended
                    process.wait(10)
        return [_read(*pair, end) for pair, end in zip(files, ends, strict=True)]


def _start(job: Job, out: Path, err: Path) -> subprocess.Popen:
    code = f'from {__name__} import serve; serve{(job.function.__module__, job.function.__name__, *job.arguments)!r}'
    with out.open('w') as stdout, err.open('w') as stderr:
        command = [sys.executable, '-c', code]
        return subprocess.Popen(command, stdout=stdout, stderr=stderr, preexec_fn=os.setpgrp)


def _wait(process: subprocess.Popen, deadline: float) -> str:
    try:
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return TIME_IS_UP
    return '' if status == 0 else signal.Signals(-status).name if status < 0 else f'exit status {status}'


def _read(out: Path, err: Path, end: str) -> Outcome:
    lines = []
    for line in out.read_text().splitlines():
        with suppress(json.JSONDecodeError):  # the last line may be cut off
            lines.append(json.loads(line))
    written = [line.strip() for line in err.read_text().splitlines() if line.strip()]
    errors = [line for line in written if 'Error: ' in line] or written  # torch adds lines after its error
    return Outcome(lines[0] if lines else [], lines[1:], end, errors[-1] if errors else '')


def serve(module: str, function: str, *arguments: object) -> None:
    """Runs in the process: gets the items from a function of a module, runs them and writes their results."""
    lines = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what packages print must not mix with the findings
    items = getattr(import_module(module), function)(*arguments)
    print(json.dumps([name for name, _ in items]), file=lines, flush=True)
    for _, run in items:
        print(json.dumps(run()), file=lines, flush=True)
