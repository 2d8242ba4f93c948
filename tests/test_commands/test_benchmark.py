"""The command line of the measurements."""

import json

import pytest

from mmrednet.__main__ import main
from mmrednet.benchmark.cases import rednet_cases


def test_a_suite(capsys):
    arguments = 'benchmark operator --device cpu --quick --format json'
    assert main(arguments.split()) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['command'] == f'python -m mmrednet {arguments}'
    shapes = [str(case) for case in rednet_cases()[:2]]
    assert list(dict.fromkeys(record['shape'] for record in report['results'])) == shapes


@pytest.mark.full
def test_attention(capsys):
    assert main('benchmark attention --device cpu --quick --format json'.split()) == 0
    records = json.loads(capsys.readouterr().out)['results']
    assert [(record['shape'], record['unit']) for record in records[::4]] == [
        ('512x7x7, K = 7', unit) for unit in ('ms', 'ms', 'MiB', 'MiB')
    ]


def test_an_involution_in_two_dtypes(capsys):
    arguments = 'benchmark involution --device cpu --budget 0 --input 1 16 6 5 --kernel-size 3 --dtype float32 bfloat16'
    assert main(arguments.split()) == 0
    text = capsys.readouterr().out
    assert text.count('16x6x5, K = 3, 1 groups') == 2 and 'bfloat16, contiguous, on cpu' in text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('involution --input 1 16 6 6 --groups 3', 'groups must be a divisor'),
        ('involution --input 1 16 6 6 --stride 1 2 3', 'stride must be'),
        ('involution --input 1 16 6 6 --kernel-size 3 4', 'kernel_size must be odd'),
        ('involution --input 1 16 6 6 --device tpu7', "device 'tpu7' cannot be used"),
        ('network --phases test --quick --device cpu', 'phase must be one of'),
    ],
)
def test_what_cannot_be_measured(capsys, arguments, message):
    assert main(['benchmark', *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_wrong_sizes_are_refused_before_anything_is_imported(capsys):
    with pytest.raises(SystemExit):
        main('benchmark involution --input 1 16 0 6'.split())
    assert '--input: must be at least 1, but is 0' in capsys.readouterr().err


@pytest.mark.parametrize('command', ('--traceback involution --device tpu7', 'involution --device tpu7 --traceback'))
def test_the_traceback_on_request(command):
    with pytest.raises(ValueError, match='tpu7'):
        main(['benchmark', *command.split(), *'--input 1 16 6 6'.split()])
