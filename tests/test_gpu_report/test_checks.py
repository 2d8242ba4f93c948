"""The checks of a report: correct backends pass, and planted faults are found."""

import pytest
import torch
from helpers import TOLERANCE

from mmrednet.benchmark.cases import Case, rednet_cases
from mmrednet.gpu_report import checks
from mmrednet.gpu_report.checks import LAYOUTS, PROBLEMS, behaviour, errors
from mmrednet.ops import involution2d

SMALL = Case(8, (5, 6), (3, 3), groups=2)


def test_allowed_errors_and_problems():
    assert PROBLEMS[0][2] in rednet_cases()
    assert {0, 1} <= {batch for _, batch, _ in PROBLEMS}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', TOLERANCE)
def test_a_right_backend_passes(dtype, layout):
    for batch, case in ((2, SMALL), (0, SMALL), (1, Case(4, (1, 1), (5, 5), (2, 2)))):
        found = errors(batch, case, dtype, 'cpu', layout, 'torch')
        assert len(found) == 7 and all(0 <= error <= 1 for error in found.values())


def spoil(monkeypatch, backend, spoiler):
    """Changes the results of one backend, but not those of the reference."""

    def spoiled(input, kernel, *args, **kwargs):
        output = involution2d(input, kernel, *args, **kwargs)
        return spoiler(output) if kwargs['backend'] == backend else output

    monkeypatch.setattr(checks, 'involution2d', spoiled)


def test_a_fault_is_found(monkeypatch):
    relative = torch.ones(5, 6)
    relative[4, 5] += 1e-4
    spoil(monkeypatch, 'torch', lambda output: output * relative)
    found = errors(2, SMALL, torch.float32, 'cpu', 'contiguous', 'torch')
    assert found['forward'] > 1 and found['fused'] <= 1
    spoil(monkeypatch, 'torch', lambda output: output * torch.where(relative == 1, 1.0, torch.nan))
    assert errors(2, SMALL, torch.float32, 'cpu', 'contiguous', 'torch')['forward'] == float('inf')


def test_runs_that_differ_are_found(monkeypatch):
    assert [check() for _, check in behaviour('cpu', 'torch', SMALL)] == [None] * 3
    calls = iter(range(1000))
    spoil(monkeypatch, 'torch', lambda output: output + (next(calls) == 7))
    found = {name: check() for name, check in behaviour('cpu', 'torch', SMALL)}
    assert found['20 runs give the same bits, float32'] == 'other bits: forward'
    assert found['20 runs give the same bits, bfloat16'] is None
