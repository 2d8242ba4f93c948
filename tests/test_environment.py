"""Facts about the machine."""

import os
import subprocess

import pytest
from helpers import ROOT

from mmrednet.environment import commit, driver_and_clocks, find_device, versions


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A program that answers for one GPU only."""
    tool = tmp_path / 'nvidia-smi'
    tool.write_text(
        '#!/bin/sh\n[ "$3" = --id=GPU-12ab ] || { echo "No devices were found"; exit 3; }\n'
        'echo "570.1, 1980 MHz, 1980 MHz, 2619 MHz, 2619 MHz, 700.00 W, 33, Enabled"\n'
    )
    tool.chmod(0o700)
    monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')


def test_the_driver_of_the_gpu_that_torch_uses(nvidia_smi):
    found = driver_and_clocks('12ab')
    assert found['driver'] == '570.1' and found['clocks'].startswith('clocks.sm 1980 MHz, clocks.max.sm 1980 MHz, ')
    assert driver_and_clocks('GPU-12ab') == found
    assert driver_and_clocks('99') == {'driver': 'not known: nvidia-smi reports: No devices were found'}


def test_no_driver(monkeypatch):
    monkeypatch.setenv('PATH', '')
    assert driver_and_clocks() == {'driver': 'not known: there is no nvidia-smi'}


def test_the_commit():
    head = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout
    assert head.startswith(commit().removesuffix('-dirty')) and len(commit()) >= 12


def test_packages_that_are_missing_have_no_version():
    assert versions('absent_package').startswith('Python 3.') and 'absent_package' not in versions('absent_package')


def test_a_device_that_does_not_exist():
    assert find_device('cpu').type == 'cpu'
    with pytest.raises(ValueError, match="device 'tpu7' cannot be used .*: give another, such as cpu"):
        find_device('tpu7')
