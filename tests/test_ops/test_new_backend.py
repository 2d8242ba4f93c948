"""A new backend is one module and one row: a copy of the package gets both, and every user of backends runs on it."""

import shutil

import pytest
from helpers import ROOT, cells, run_python

MODULE = """
from .reference import involution2d as _reference
from .pytorch import grad_input, grad_kernel

def load():
    pass

def involution2d(out, input, kernel, *geometry):
    out.copy_(_reference(input, kernel, *geometry))
"""
ROW = "    'toy': Row('mmrednet.ops.backends.toy', ('cpu',)),\n"
TABLE = 'TABLE = {  # by name, best first\n'
GRID = """
import sys, torch
sys.path.insert(0, {tests!r})
from helpers import CASES, check, make_arguments, make_fused_arguments, run
from mmrednet.ops import fused_involution2d, involution2d
for case in CASES[2:]:  # the first two are large
    for operator, make in ((involution2d, make_arguments), (fused_involution2d, make_fused_arguments)):
        arguments = make(*case, torch.float32, 'cpu')
        check(operator, run(operator, *arguments, backend='toy'), *arguments)
"""


@pytest.fixture(scope='module')
def run_with_toy(tmp_path_factory):
    """Returns a function that runs Python with the changed copy."""
    copy = tmp_path_factory.mktemp('copy')
    shutil.copytree(ROOT / 'mmrednet', copy / 'mmrednet', ignore=shutil.ignore_patterns('__pycache__'))
    backends = copy / 'mmrednet' / 'ops' / 'backends'
    (backends / 'toy.py').write_text(MODULE)
    table = backends / '__init__.py'
    assert TABLE in table.read_text()
    table.write_text(table.read_text().replace(TABLE, TABLE + ROW))

    start = (
        f'import os, sys\nos.chdir({str(copy)!r})\nsys.path.insert(0, os.getcwd())\n'
        "os.environ['PYTHONPATH'] = os.getcwd()\n"  # of the processes that it starts
    )
    return lambda code: run_python(start + code, 'import torch')


def test_the_operators_grid(run_with_toy):
    run_with_toy(GRID.format(tests=str(ROOT / 'tests')))


def test_info(run_with_toy):
    run_with_toy(
        'from mmrednet.diagnosis import backend_probes, diagnose\n'
        "assert diagnose(backend_probes)['backend toy on cpu'] == ('works', '')"
    )


def test_benchmark_involution(run_with_toy):
    arguments = 'benchmark involution --device cpu --budget 0 --input 1 32 6 6'.split()
    text = run_with_toy(f'from mmrednet.__main__ import main\nassert main({arguments}) == 0')
    assert ['toy', 'is used: the first that works'] in cells(text)
    assert [row[0] for row in cells(text) if row[1:2] == ['toy']] == ['forward', 'backward']
