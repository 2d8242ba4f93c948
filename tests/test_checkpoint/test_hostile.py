"""Hostile checkpoints end in one line: no code runs, nothing is written, and memory is bounded (see hostile.py)."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize('count', (300, pytest.param(5000, marks=pytest.mark.slow)))
def test_hostile_files(count, tmp_path):
    pytest.importorskip('safetensors')
    script = Path(__file__).with_name('hostile.py')
    command = [sys.executable, '-W', 'ignore', script, tmp_path, str(count), str(count)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
    assert ' files: ' in run.stdout and {path.stem for path in tmp_path.iterdir()} <= {'good', 'case'}
