"""The report on this machine, and on broken packages, compilers and cache folders."""

import importlib.metadata
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import torch
from helpers import TORCH_ALONE, cells, run_python

from mmrednet.commands import COMMANDS
from mmrednet.diagnosis import machine_probes
from mmrednet.ops.backends import TABLE
from mmrednet.requirements import MINIMUM


def info(*arguments, **environment):
    environment = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    command = [sys.executable, '-m', 'mmrednet', 'info', *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0 and run.stderr == '', run.stderr
    return run.stdout


def test_this_machine():
    report = info()
    head, line, *rows = cells(report)
    assert head == ['what', 'found', 'problem'] and set(line) == {'---'}
    # The output is the table alone, which people copy into an issue.
    assert report.splitlines() == [line for line in report.splitlines() if re.fullmatch(r'\|( [^|]*\|)+', line)]
    rows = {what: (here, problem) for what, here, problem in rows}
    assert rows['torch'] == (torch.__version__, '')
    distributions = importlib.metadata.packages_distributions()
    for package in [*MINIMUM][1:]:
        (distribution,) = {*distributions[package]}
        assert rows[package][0].startswith(importlib.metadata.version(distribution)) and rows[package][1] == ''
    family = 'OneDL' if 'onedl-mmcv' in distributions['mmcv'] else 'OpenMMLab'
    assert rows['family'] == (family, '') and rows["mmcv's operators"] == ('loaded', '')
    for name, row in TABLE.items():
        for device in row.devices or ('cpu', 'cuda'):
            works = getattr(torch, device).is_available()
            assert rows[f'backend {name} on {device}'][0] == ('works' if works else 'not tried')
    assert str(len(os.sched_getaffinity(0))) in rows['threads'][0]
    assert str(Path.home()) not in report


def test_a_broken_environment(tmp_path):
    """Each package is broken in another way, there is no compiler, and everyone can write to the cache folder."""
    packages, home = tmp_path / 'site', tmp_path / 'alice'
    cache = home / 'cache'
    for name, text in {
        'mmengine': "__version__ = '99.0'",
        'mmcv': "__version__ = '1.7.1'",
        'mmpretrain': "print('noise')\nimport sys\nsys.exit('no')",
        'mmdet': f"raise RuntimeError('''{home}/secret/lib.so: undefined | symbol\nmore''')",
        'mmseg': 'import os\nos.abort()',
        'cupy': 'import absent_package',
    }.items():
        folder = packages / name
        folder.mkdir(parents=True)
        (folder / '__init__.py').write_text(text)
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    environment = dict(PYTHONPATH=str(packages), HOME=str(home), MMREDNET_CACHE_DIR=str(cache), PATH='', CXX=None)
    report = info(**environment)
    # The output of a package stays in its cell.
    found = {what: dict(here=here, problem=problem) for what, here, problem in cells(report.replace(r'\|', '/'))}
    for package, word in (
        ('mmcv', '1.7.1 is installed'),
        ('mmdet', 'lib.so: undefined / symbol more'),
        ('mmpretrain', 'no'),
        ('mmseg', 'SIGABRT'),
        ("mmcv's operators", 'mmcv-lite'),
        ('CuPy', 'absent_package'),
        ('compiler', 'CXX'),
        ('cache folder', 'MMREDNET_CACHE_DIR'),
        ('backend cpu on cpu', 'no C++ compiler'),
    ):
        assert word in found[package]['problem'], package
    # The name of OneDL's distribution follows the version.
    assert found['mmengine']['here'].startswith('99.0') and not found['mmengine']['problem']
    assert found['backend torch on cpu'] == dict(here='works', problem='')
    assert found['cache folder']['here'].startswith('~/cache: yours, mode 777, 0 libraries')
    assert str(tmp_path) not in report and 'secret' not in report and 'noise' not in report
    assert stat.S_IMODE(cache.stat().st_mode) == 0o777 and list(cache.iterdir()) == []


def test_torch_alone(tmp_path):
    """Packages that torch does not install are missing, and the cache folder does not exist."""
    hidden = ('numpy', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cupy', 'rich', 'cv2', 'yaml')
    (tmp_path / 'sitecustomize.py').write_text(f'import sys\nsys.modules.update(dict.fromkeys({hidden}))\n')
    cache = tmp_path / 'none' / 'yet'
    # Without a compiler nothing is compiled, which saves time.
    found = json.loads(info('--json', PYTHONPATH=str(tmp_path), MMREDNET_CACHE_DIR=str(cache), PATH='', CXX=None))
    for package in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'CuPy', "mmcv's operators"):
        assert found[package] == dict(here='not installed', problem='')
    assert found['torch'] == dict(here=torch.__version__, problem='')
    assert found['cache folder'] == dict(here=f'{cache}: does not exist yet', problem='')
    assert found['backend torch on cpu']['here'] == 'works'


def test_every_command_can_be_imported_with_torch_alone():
    modules = [f'mmrednet.commands.{name.replace("-", "_")}' for name in COMMANDS]
    run_python(f'import {", ".join(modules)}', TORCH_ALONE)


def test_a_broken_torch(tmp_path):
    (tmp_path / 'torch.py').write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    found = json.loads(info('--json', PYTHONPATH=str(tmp_path)))
    assert 'libcudart.so.13' in found['torch']['problem']
    assert found['compiler']['here'] and not any(what.startswith('backend') for what in found)


def test_a_cache_folder_that_cannot_be_used(tmp_path, monkeypatch):
    if os.geteuid():
        tmp_path.chmod(0o500)
        words = ('yours, mode 500', 'you cannot write there')
    else:
        os.chown(tmp_path, 12345, -1)  # root can write everywhere, but this is not root's
        words = ("another user's, mode 700", 'belongs to another user')
    monkeypatch.setenv('MMREDNET_CACHE_DIR', str(tmp_path))
    finding = dict(machine_probes())['cache folder']()
    assert words[0] in finding.here and words[1] in finding.problem
    assert finding.problem.endswith('set MMREDNET_CACHE_DIR to a folder that is yours alone')
