"""Functions in processes of their own: results, crashes and time limits."""

import os
import subprocess
import time
from pathlib import Path

from mmrednet import workers
from mmrednet.workers import TIME_IS_UP, Job, run_jobs

HERE = Path(__file__).parent


def items(crash):
    print('noise of a package')
    return [('one', lambda: {'n': 1}), ('two', lambda: os.abort() if crash else 2), ('three', lambda: [3])]


def slow(folder):
    child = subprocess.Popen(['sleep', '300'])
    Path(folder, 'pid').write_text(str(child.pid))
    return [('slow', lambda: time.sleep(300))]


def broken():
    raise ImportError('install it')


def outcome(monkeypatch, function, *arguments, seconds=60):
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(HERE), str(Path(workers.__file__).parents[1])]))
    monkeypatch.setattr(function, '__module__', Path(__file__).stem)
    (found,) = run_jobs([Job(function, arguments)], seconds)
    return found


def test_all_results(monkeypatch):
    found = outcome(monkeypatch, items, False)
    assert found == (['one', 'two', 'three'], [{'n': 1}, 2, [3]], '', 'noise of a package')


def test_a_crash_keeps_what_was_found(monkeypatch):
    found = outcome(monkeypatch, items, True)
    assert found[:3] == (['one', 'two', 'three'], [{'n': 1}], 'SIGABRT')


def test_an_error_before_the_items(monkeypatch):
    assert outcome(monkeypatch, broken) == ([], [], 'exit status 1', 'ImportError: install it')


def test_a_limit(monkeypatch, tmp_path):
    """At the limit, the process and the processes that it has started end."""
    found = outcome(monkeypatch, slow, str(tmp_path), seconds=3)
    assert found[:3] == (['slow'], [], TIME_IS_UP)
    # Its parent may not have collected it, but it no longer runs.
    status = Path('/proc', (tmp_path / 'pid').read_text(), 'status')
    assert not status.exists() or '(zombie)' in status.read_text()
