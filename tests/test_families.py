"""The packages that the set-up installs on each kind of machine, and faults of OneDL's packages."""

import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
from helpers import ROOT, run_python

# Replaces Python: makes a folder like a virtual environment, logs the calls of pip, and can end the set-up at one.
PYTHON = """#!/bin/bash
if [[ "$*" = '-m pip '* && "$3" != --version ]]; then
    # Two processes call pip at the same time.
    number=$(flock calls sh -c 'echo >>calls; wc -l <calls')
    [ "$number" != "$(cat ends)" ] || { kill -s "$(cat signal)" "$(cat setup.pid)"; exit 1; }
fi
case "$*" in
    '-m venv --clear '*)
        installed=$4/lib/python3.11/site-packages/mmrednet-0.2.0.dist-info
        mkdir -p "$4/bin" "$installed" && cp "$0" "$4/bin/python" && touch "$installed/RECORD"
        echo "PATH=$PWD/$4/bin:\\$PATH" >"$4/bin/activate" ;;
    '-m pip --version') ;;
    *'{fails}'*) exit 1 ;;
    *'{hangs}'*) echo $$ >pid; exec sleep 60 ;;
    '-m pip download '*)
        echo "$*: $(cat "${*: -1}")" >>pip.log
        sources=$(mktemp -d)
        mkdir -p "$sources/mmcv/mmcv/ops/csrc/pytorch/cpu" && cd "$sources/mmcv/mmcv/ops/csrc/pytorch"
        touch pybind.cpp nms.cpp roi_align.cpp cpu/nms.cpp cpu/roi_align.cpp cpu/roi_pool.cpp
        tar -czf "${*: -3:1}/mmcv.tar.gz" -C "$sources" mmcv ;;
    '-m pip wheel '*)
        echo "$* $FORCE_CUDA" >>pip.log
        (cd "${*: -1}" && grep -r include . | sort) >>pip.log
        mkdir "${*: -2:1}" && echo whole >"${*: -2:1}/mmcv.whl" ;;
    '-m pip '*) echo "$* PIP_USER=$PIP_USER" >>pip.log ;;
    *) exec {real} "$@" ;;
esac
"""
SMI = '| NVIDIA-SMI 550.54.14    Driver Version: 550.54.14    CUDA Version: {}     |'
NVCC = 'Cuda compilation tools, release {}, V{}.131'


@pytest.fixture
def set_up(tmp_path):
    """Runs the set-up where the named programs print a text; returns its output and the calls of pip."""
    (tmp_path / 'tools').mkdir()
    for path in [*(ROOT / 'tools').glob('requirements*.txt'), ROOT / 'tools' / 'setup.sh']:
        shutil.copy(path, tmp_path / 'tools')
    shutil.copy(ROOT / 'setup.cfg', tmp_path)
    programs = tmp_path / 'programs'
    programs.mkdir()

    def run(family=None, pip_user='', fails='nothing', hangs='nothing', ends=0, signal='KILL', **prints):
        scripts = {name.replace('_', '-'): f"#!/bin/sh\necho '{text}'\n" for name, text in prints.items() if text}
        python = PYTHON.replace('{real}', sys.executable).replace('{fails}', fails).replace('{hangs}', hangs)
        for name, text in dict(calls='', ends=f'{ends}', signal=signal).items():
            (tmp_path / name).write_text(text)
        for name, script in {'python3.11': python, **scripts}.items():
            (programs / name).write_text(script)
            (programs / name).chmod(0o755)
        environment = dict(
            PATH=f'{programs}{os.pathsep}/usr/bin:/bin', HOME=str(tmp_path), CXX='true', PIP_USER=pip_user
        )
        if family is not None:
            environment['FAMILY'] = family
        command = ['bash', '-c', 'echo $$ >setup.pid; exec bash tools/setup.sh']
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        log = tmp_path / 'pip.log'
        return done, log.read_text() if log.exists() else ''

    return run


@pytest.mark.parametrize(
    ('driver', 'compiler', 'torch', 'cupy', 'force_cuda', 'words'),
    (
        (None, None, '2.11.0', 'cuda13x', 0, 'for the CPU '),
        ('13.0', '13.0', '2.11.0', 'cuda13x', 1, 'for the CPU and CUDA'),
        ('13.0', None, '2.11.0', 'cuda13x', 0, 'no nvcc of CUDA 13:'),
        ('12.4', '12.6', '2.10.0', 'cuda12x', 1, 'for the CPU and CUDA'),
        ('12.8', None, '2.10.0', 'cuda12x', 0, 'no nvcc of CUDA 12:'),
        ('12.8', '13.0', '2.10.0', 'cuda12x', 0, 'no nvcc of CUDA 12: it is of 13'),
        ('13.0', '12.6', '2.10.0', 'cuda12x', 1, 'for the CPU and CUDA'),
        ('11.4', '12.6', '2.11.0', 'cuda13x', 0, 'update the driver'),
    ),
)
def test_the_driver_and_nvcc_decide_for_which_cuda_all_is_built(
    set_up, driver, compiler, torch, cupy, force_cuda, words
):
    done, asked = set_up(nvidia_smi=driver and SMI.format(driver), nvcc=compiler and NVCC.format(compiler, compiler))
    assert done.returncode == 0, done.stderr
    assert f' torch=={torch} ' in asked
    assert f' cupy-{cupy}==' in asked
    assert 'mmcv==2.1.0 --hash=sha256:d387bcab' in asked
    assert f'/mmcv/ {force_cuda}\n' in asked
    assert f'mmcv-2.1.0-torch-{torch}-' in asked
    assert words in done.stdout


def test_most_files_of_mmcv_are_compiled_as_one(set_up):
    _, asked = set_up()
    files = [line for line in asked.splitlines() if '#include' in line]
    assert files == [
        './mmcv/ops/csrc/pytorch/cpu/merged.cpp:#include "nms.cpp.inc"',
        './mmcv/ops/csrc/pytorch/cpu/merged.cpp:#include "roi_pool.cpp.inc"',
        './mmcv/ops/csrc/pytorch/merged.cpp:#include "nms.cpp.inc"',
        './mmcv/ops/csrc/pytorch/merged.cpp:#include "roi_align.cpp.inc"',
    ]


def test_what_is_done_is_not_done_again(set_up):
    first, asked = set_up()
    again, asked_again = set_up()
    assert first.returncode == again.returncode == 0
    assert asked_again == asked
    assert again.stdout.splitlines() == ['[setup] Ready: everything is installed in .venv']


def test_mim_finds_the_package_and_pip_the_link(set_up, tmp_path):
    assert set_up()[0].returncode == 0
    packages = tmp_path / '.venv/lib/python3.11/site-packages'
    assert (packages / 'mmrednet').readlink() == tmp_path / 'mmrednet'
    assert (packages / 'mmrednet-0.2.0.dist-info/RECORD').read_text() == 'mmrednet,,\n'


def test_another_driver_exchanges_what_is_built_for_cuda(set_up):
    set_up(nvidia_smi=SMI.format('13.0'))
    _, asked = set_up(nvidia_smi=SMI.format('12.8'))
    second = asked[asked.index('torch==2.10.0') :]
    assert second.index('--yes cupy-cuda13x') < second.index('cupy-cuda12x==')


def test_a_failed_download_stops_it_with_a_message(set_up):
    done, _ = set_up(fails='requirements-openmmlab.txt')
    assert done.returncode == 1 and 'The toolboxes were not installed' in done.stderr


def test_a_failed_build_leaves_no_process_and_no_files(set_up, tmp_path):
    done, _ = set_up(fails='pip wheel', hangs='requirements-openmmlab.txt')
    assert done.returncode == 1
    assert not list((tmp_path / '.cache' / 'mmrednet').iterdir())
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # it got a signal, and needs a moment to end
            os.kill(int((tmp_path / 'pid').read_text()), 0)
            time.sleep(0.1)


@pytest.mark.parametrize(
    ('ends', 'signal'),
    [
        pytest.param(ends, signal, marks=[] if signal == 'KILL' and ends in (4, 5) else pytest.mark.full)
        for ends, signal in product(range(1, 8), ('KILL', 'TERM', 'INT'))
    ],
)
def test_it_is_ended_at_any_call_of_pip_and_run_again(set_up, tmp_path, ends, signal):
    done, before = set_up(ends=ends, signal=signal)
    stamps = {'.torch', '.toolboxes', '.mmcv', '.mmrednet'}
    environment = tmp_path / '.venv'
    assert done.returncode and 'Ready' not in done.stdout
    assert not all((environment / stamp).exists() for stamp in stamps)
    # A wheel in the cache is whole. What a killed build leaves has another name.
    wheels = (tmp_path / '.cache' / 'mmrednet').glob('*-optimized')
    assert all((path / 'mmcv.whl').read_text() == 'whole\n' for path in wheels)
    done, asked = set_up()
    assert done.returncode == 0 and 'Ready' in done.stdout, done.stderr
    assert asked != before and all((environment / stamp).exists() for stamp in stamps)


def test_a_users_choice_of_pip_user_does_not_stop_it(set_up):
    done, asked = set_up(pip_user='1')
    assert done.returncode == 0, done.stderr
    assert 'install' in asked and 'PIP_USER=1' not in asked


def test_mmcvs_operators_are_optimized():
    """Without optimisation the library has std::forward as a function; with assertions, it calls __assert_fail."""
    library = Path(find_spec('mmcv._ext').origin).read_bytes()
    assert b'_ZSt7forward' not in library and b'__assert_fail' not in library


def test_the_other_family_has_an_environment_of_its_own(set_up, tmp_path):
    done, asked = set_up(family='onedl')
    assert done.returncode == 0, done.stderr
    assert 'onedl-mmcv==2.3.6 --hash=sha256:8704978a' in asked
    assert ' -r tools/requirements-onedl.txt ' in asked
    assert (tmp_path / '.venv-onedl').is_dir() and not (tmp_path / '.venv').exists()


def test_an_unknown_family_is_refused_with_the_names_of_the_known_ones(set_up):
    done, asked = set_up(family='mmlab')
    assert done.returncode == 1 and not asked
    assert "FAMILY is 'mmlab'" in done.stderr and 'onedl' in done.stderr


@pytest.mark.full
def test_our_configs_find_mmsegs_whatever_its_distribution_is_named():
    run_python(
        'from mmengine.config import Config\n'
        'from mmengine.config.utils import MODULE2PACKAGE\n'
        "MODULE2PACKAGE['mmseg'] = 'a name that is not installed'\n"
        'from glob import glob\n'
        f"for path in glob('{ROOT}/configs/mmseg/*.py'):\n"
        "    assert Config.fromfile(path).model.type == 'EncoderDecoder'"
    )


def test_safe_names_outlast_those_of_one_checkpoint_and_getattr_is_none(tmp_path):
    """OneDL's mmengine has such a function. It registers its names for each checkpoint and removes them afterwards."""
    run_python(
        'import torch\n'
        'from mmengine.logging import HistoryBuffer\n'
        'from mmengine.runner import checkpoint\n'
        'checkpoint.get_torch_safe_globals = lambda: [HistoryBuffer, getattr, slice]\n'
        'import mmrednet.registry\n'
        f'path = {str(tmp_path / "log.pth")!r}\n'
        'torch.save(HistoryBuffer([1.0], [1]), path)\n'
        'with torch.serialization.safe_globals(checkpoint.get_torch_safe_globals()):\n'
        '    names = torch.serialization.get_safe_globals()\n'
        'assert slice in names and getattr not in names\n'
        'assert torch.load(path, weights_only=True).mean() == 1'
    )
