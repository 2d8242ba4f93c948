"""The processes of a report. Each part has its own, since a fault in a kernel makes the GPU unusable for a process."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..workers import TIME_IS_UP, Job, Outcome, run_jobs
from .parts import SANITIZERS, items_of


def run_parts(names: Sequence[str], seconds: float, device: str, quick: bool = False) -> list[dict]:
    """Runs some of ``PARTS`` side by side for at most some seconds, and returns the outcome of each.

    'part' is its name, 'items' has what each item has found, 'left_out' has the names of the other items, and 'end' is
    why the part ended early, '' otherwise. With a sanitizer, 'sanitizer' has the lines that it wrote and 'summary' has
    its summary.
    """
    outcomes, jobs = [], {}
    tool = _find_sanitizer()
    with tempfile.TemporaryDirectory() as folder:
        logs = {name: Path(folder, name) for name in names}
        for name in names:
            if name not in SANITIZERS:
                jobs[name] = Job(items_of, (name, device, quick))
            elif tool:
                # In blocks of torch's caching allocator, reading beyond a tensor is no error for a sanitizer.
                environment = {'PYTORCH_NO_CUDA_MEMORY_CACHING': '1'}
                command = _sanitizer_command(tool, name, str(logs[name]))
                jobs[name] = Job(items_of, (name, device, quick), command, environment)
            else:
                outcomes.append(_outcome(name, [], [], 'no compute-sanitizer is installed'))
        found = zip(jobs, run_jobs([*jobs.values()], seconds), strict=True)
        return outcomes + [_read(name, outcome, logs[name]) for name, outcome in found]


def _outcome(part: str, planned: Sequence[str], found: Sequence[dict], end: str) -> dict:
    items = dict(zip(planned, found, strict=False))
    return {'part': part, 'items': items, 'left_out': list(planned[len(items) :]), 'end': end}


def _read(part: str, outcome: Outcome, log: Path) -> dict:
    planned, found, end, error = outcome
    if end and end != TIME_IS_UP and error:
        end += f': {error}'
    if not log.exists():
        return _outcome(part, planned, found, end)
    lines = [line.removeprefix('=========').strip() for line in log.read_text().splitlines()]
    if refusal := next((line for line in lines if 'not supported' in line), None):
        return _outcome(part, planned, [], f'compute-sanitizer: {refusal}')
    summary = next((line for line in reversed(lines) if 'SUMMARY' in line), 'no summary, since it was ended')
    written = [line for line in lines if line][:30]
    return {**_outcome(part, planned, found, end), 'sanitizer': written, 'summary': summary}


def _find_sanitizer() -> str | None:
    homes = *filter(None, map(os.environ.get, ('CUDA_HOME', 'CUDA_PATH'))), '/usr/local/cuda'
    places = os.environ.get('PATH', ''), *(f'{home}/bin' for home in homes)
    return shutil.which('compute-sanitizer', path=os.pathsep.join(places))


def _sanitizer_command(tool: str, name: str, log: str) -> list[str]:
    from ..ops.backends.cuda import WRITTEN

    command = [tool, '--tool', name, '--log-file', log]
    for function in WRITTEN:  # only our kernels: with torch's it would take minutes
        command += ['--kernel-name', f'kne={function}']
    # torch makes calls that the driver refuses as expected. memcheck would report them as errors.
    return [*command, '--report-api-errors', 'no'] if name == 'memcheck' else command
