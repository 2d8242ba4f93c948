"""The parts of the report that run on a CPU: their processes, and the text."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import TORCH_ALONE, cells, run_python

from mmrednet.__main__ import main
from mmrednet.benchmark import timing
from mmrednet.benchmark.cases import Case
from mmrednet.gpu_report import parts, report
from mmrednet.gpu_report.parts import networks, operator
from mmrednet.gpu_report.report import describe, find_faults, format_report, make_report, run_parts
from mmrednet.workers import TIME_IS_UP

HERE = Path(__file__).parent
CPU = torch.device('cpu')
SMALL = Case(64, (8, 8), groups=4)


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs to be without a GPU')
def test_without_a_gpu(tmp_path, capsys):
    assert main(['gpu-report', '--out', str(tmp_path / 'r.md')]) == 2
    assert capsys.readouterr().err.count('\n') == 1 and not list(tmp_path.iterdir())


def test_it_needs_torch_alone():
    run_python(
        'import torch\n'
        'from mmrednet.gpu_report import parts, report\n'
        "device = torch.device('cpu')\n"
        "name, measure = parts.correctness('float32', device, 'torch')[1]\n"
        "assert max(measure()['errors'].values()) <= 1, name\n"
        "assert 'cpu' not in report.describe(device) and parts.operator(device, 'torch')\n"
        'try:\n'
        "    parts.networks(device, 'torch')\n"
        'except ImportError as error:\n'
        "    assert 'needs mmpretrain' in str(error)\n"
        'else:\n'
        '    raise AssertionError\n',
        TORCH_ALONE,
    )


def small_items(*arguments):
    """Returns the items of a part, for small tensors: on the CPU a stage of RedNet takes a minute."""
    (name, batch, _), *rest = parts.PROBLEMS
    parts.PROBLEMS = ((name, batch, SMALL), *rest)
    parts.behaviour = partial(parts.behaviour, case=SMALL, batch=2)
    return parts.items_of(*arguments)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """The report of the parts that check, which run on the CPU in processes of their own."""
    out = tmp_path_factory.mktemp('report') / 'report.md'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_items, '__module__', Path(__file__).stem)
        patch.setenv('PYTHONPATH', os.pathsep.join(map(str, (HERE, *sys.path))))
        patch.setattr(report, 'items_of', small_items)
        patch.setattr(report, 'PLAN', ((('float32', 'behaviour'), 1.0), (('compiled',), 1.0)))
        assert make_report(out, CPU, True, {'command': 'python -m mmrednet gpu-report'}) == []
    return out


@pytest.fixture
def outcomes(written):
    return json.loads(written.with_suffix('.json').read_text())['parts']


def test_the_files(written, outcomes):
    assert [(o['part'], o['end'], o['left_out']) for o in outcomes] == [('float32', '', []), ('behaviour', '', [])]
    assert len(outcomes[0]['items']) == 24 and len(outcomes[1]['items']) == 3
    about = json.loads(written.with_suffix('.json').read_text())['about']
    assert about['command'] == 'python -m mmrednet gpu-report'
    assert written.read_text() == format_report(about, outcomes) and 'All 27 checks' in written.read_text()


def test_a_part_whose_time_is_over_is_ended():
    (outcome,) = run_parts(('float64',), 0.2, 'cpu')
    assert outcome['end'] == TIME_IS_UP and outcome['items'] == {} and find_faults([outcome]) == []


def test_what_is_done_is_written_when_the_rest_is_cut_off(outcomes, tmp_path, monkeypatch):
    def run_one(names, *args):
        if names != ('float32',):
            raise SystemExit(143)
        return outcomes[:1]

    monkeypatch.setattr(report, 'PLAN', ((('float32',), 0.5), (('operator',), 1.0)))
    monkeypatch.setattr(report, 'run_parts', run_one)
    with pytest.raises(SystemExit):
        make_report(tmp_path / 'r.md', CPU)
    assert 'All 24 checks' in (tmp_path / 'r.md').read_text()
    assert json.loads((tmp_path / 'r.json').read_text())['parts'] == outcomes[:1]


def test_find_faults():
    part = {'left_out': [], 'end': ''}
    items = {
        'x; contiguous; float32': {'errors': {'forward': 0.9, 'fused': 1.5}},
        'y; mixed; float32': {'errors': {'forward': float('nan')}},
        'z; mixed; float32': {'failed': 'RuntimeError: no'},
    }
    found = find_faults(
        [
            {'part': 'float32', 'items': items, **part},
            {'part': 'behaviour', 'items': {'streams': {'wrong': 'other bits'}, 'graphs': {'wrong': None}}, **part},
            {'part': 'behaviour', 'items': {'large': {'skipped': 'not enough memory'}}, **part},
            {'part': 'float16', 'items': {}, 'left_out': [], 'end': 'SIGSEGV'},
            {'part': 'operator', 'items': {'slow': {'failed': 'out of memory'}}, **part},
        ]
    )
    assert found == [
        'x; contiguous; float32: fused has 1.5 times the error that is allowed',
        'y; mixed; float32: forward has nan times the error that is allowed',
        'z; mixed; float32: RuntimeError: no',
        'streams: other bits',
        'float16: ended by SIGSEGV',
    ]


def measured(part, items):
    """Returns the outcome of a part that measures, as it is read from its process."""
    found = {name: json.loads(json.dumps(measure())) for name, measure in items}
    return {'part': part, 'items': found, 'left_out': [], 'end': ''}


def test_the_report(outcomes, monkeypatch):
    monkeypatch.setattr(timing, 'BLOCK', 1e-9)  # one call a sample
    monkeypatch.setattr(parts, 'ROUNDS', (3, 3))
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='aot_eager'))  # Inductor takes minutes
    monkeypatch.setattr(parts, 'NETWORKS', ('ResNet-50', 'RedNet-50'))
    cases = [(Case(32, (8, 8), (3, 3), groups=2), 2), (Case(16, (6, 5), (3, 3)), 1)]
    found = [
        *outcomes,
        measured('operator', operator(CPU, 'cpu', True, cases)),
        measured('compiled', operator(CPU, 'cpu', True, cases, compiled=True)),
        measured('networks', networks(CPU, 'cpu', True, 2, (32, 32))[::2]),
    ]
    found[2]['left_out'], found[2]['end'] = ['a row'], TIME_IS_UP
    found[1]['items']['more than 2^31 elements'] = {'skipped': 'not enough memory'}
    about = describe(CPU)
    text = format_report(about, json.loads(json.dumps(found)))
    assert all(f'- {name}: {value}' in text for name, value in about.items())
    assert torch.__version__ in about['versions'] and 'commit' in about['mmrednet']
    assert '**All 27 checks that ran are right.** 1 did not run.' in text
    assert '- operator: a row (its time was up)' in text and '- more than 2^31 elements: not enough memory' in text
    rows = cells(text)
    errors = {row[0]: float(row[1]) for row in rows if row[0] in ('a stage of RedNet', 'an empty batch')}
    assert 0 < errors['a stage of RedNet'] <= 1 and errors['an empty batch'] == 0
    heads = [row for row in rows if row[0] in ('shape', 'mode')]
    # Float32 and bfloat16 of each, and networks.
    kinds = [('reference' in head, 'compiled taps' in head) for head in heads]
    assert kinds == [(True, False)] * 2 + [(False, True), (False, False)]
    head, row = heads[0], next(row for row in rows if row[0] == '32x8x8, K = 3')
    row = dict(zip(head, row, strict=True))
    moved = 4 * 2 * (32 * 64 * 2 + 2 * 9 * 64)
    times = {name: float(row[name].partition(' ')[0]) for name in ('cpu', 'floor')}
    assert float(row['cpu GB/s']) == pytest.approx(moved / times['cpu'] / 1e6, rel=0.02)
    assert float(row['cpu / floor']) == pytest.approx(times['cpu'] / times['floor'], rel=0.02)
    rows = [dict(zip(heads[-1], row, strict=True)) for row in rows if row[0] == 'eager']
    assert [row['phase'] for row in rows] == ['inference', 'training']
    assert all(float(row[name].partition(' ')[0]) > 0 for row in rows for name in ('RedNet-50', 'ResNet-50'))
