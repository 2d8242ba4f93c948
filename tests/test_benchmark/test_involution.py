"""The report on one involution: its backends and times."""

import sys
from types import ModuleType

import pytest
from helpers import cells

from mmrednet.benchmark import involution
from mmrednet.benchmark.candidates import Problem
from mmrednet.benchmark.cases import Case
from mmrednet.benchmark.involution import benchmark_involution, make_case
from mmrednet.benchmark.operator import benchmark_operator
from mmrednet.benchmark.report import format_results
from mmrednet.diagnosis import backend_probes
from mmrednet.gpu_report.parts import items_of
from mmrednet.ops import backends
from mmrednet.ops.backends import TABLE, Row, pytorch


def test_an_involution():
    case = make_case(32, (9, 12), (3, 5), (2, 1), (1, 2))
    text = benchmark_involution(Problem(case, batch=2), budget=0)
    rows = cells(text)
    assert '32x9x12, K = 3x5, stride 2x1, dilation 1x2, 2 groups, batch 2, output of 5x12 pixels' in text
    assert ['cuda', 'is for tensors on cuda'] in rows and sum('is used' in row[1] for row in rows) == 1
    times = {(row[0], row[1]): row[2:] for row in rows if row[0] in ('forward', 'backward')}
    names = {'floor', 'torch', 'reference', 'depthwise'}
    for phase, passes in (('forward', 1), ('backward', 2)):
        assert names <= {name for p, name in times if p == phase}
        moved = 4 * 2 * (passes * (32 * 9 * 12 + 2 * 15 * 60) + 32 * 60)
        assert f'{phase}: at least {moved / 2**20:.1f} MiB' in text
        ms, _, rate, percent = times[phase, 'torch']
        assert float(rate) == pytest.approx(moved / float(ms) / 1e6, rel=0.02)
        assert float(percent) == pytest.approx(100 * float(times[phase, 'floor'][0]) / float(ms), abs=1)
        ordered = [float(row[2]) for row in rows if row[0] == phase]
        assert ordered == sorted(ordered)
        assert times[phase, 'depthwise'][2:] == ['', '']  # it moves other bytes


def test_what_would_take_too_much_memory_is_left_out(monkeypatch):
    monkeypatch.setattr(involution, 'LARGEST', 16 * 49 * 36 * 4 - 1)
    text = benchmark_involution(Problem(Case(16, (6, 6))), budget=0)
    assert 'reference was left out: its windows take' in text
    assert not any('reference' in cell for row in cells(text) for cell in row)


@pytest.fixture
def toy(monkeypatch):
    """A backend that consists of one module and one row."""
    module = ModuleType('toy_backend')
    for name in ('load', 'involution2d', 'grad_input', 'grad_kernel'):
        setattr(module, name, getattr(pytorch, name))
    calls = []

    def involution2d(*arguments):
        calls.append('involution2d')
        pytorch.involution2d(*arguments)

    module.involution2d = involution2d
    monkeypatch.setitem(sys.modules, 'toy_backend', module)
    rows = dict(TABLE)
    TABLE.clear()
    TABLE.update({'toy': Row('toy_backend', ('cpu',)), **rows})
    backends._load.cache_clear()
    yield calls
    TABLE.clear()
    TABLE.update(rows)
    backends._load.cache_clear()


def test_a_new_backend_is_timed_probed_and_checked(toy):
    problem = Problem(Case(16, (6, 6)), batch=2)
    text = benchmark_involution(problem, budget=0)
    assert ['toy', 'is used: the first that works'] in cells(text)
    assert sum(row[1] == 'toy' for row in cells(text)) == 2 and toy
    results = list(benchmark_operator([problem], budget=0))
    header = cells(format_results(results, 'markdown'))[0]
    assert {'toy', 'toy / floor', 'reference / toy'} <= {*header}
    probes = dict(backend_probes())
    assert probes['backend toy on cpu']() == ('works', '')
    toy.clear()
    name, check = next(item for item in items_of('float32', 'cpu', True) if item[0].startswith('a map of one pixel'))
    assert all(error <= 1 for error in check()['errors'].values()), name
    assert toy


@pytest.mark.parametrize(
    ('sizes', 'message'),
    [
        (dict(groups=3), 'groups must be a divisor of the 16 channels, but is 3'),
        (dict(channels=18), 'channels, 18, is not a multiple of 16'),
        (dict(stride=(1, 2, 3)), 'stride must be an int or a pair of ints'),
        (dict(dilation=0), 'dilation must be at least 1'),
        (dict(kernel_size=(3, 4)), r'kernel_size must be odd, .* but is \(3, 4\)'),
    ],
)
def test_sizes_that_are_not_possible(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_case(**{'channels': 16, 'size': (6, 6), **sizes})
