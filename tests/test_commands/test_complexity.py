"""The command line that counts parameters and FLOPs."""

import json

import pytest
from helpers import ROOT, cells

from mmrednet.__main__ import main
from mmrednet.complexity.tables import ROWS, measure


@pytest.mark.parametrize('style', ('markdown', 'json'))
def test_a_table_of_the_paper(capsys, style):
    assert main(['complexity', '--table', '5', '--format', style]) == 0
    out = capsys.readouterr().out
    if style == 'markdown':
        assert ['5', 'UPerNet, RedNet-50', '56.38'] in [row[:3] for row in cells(out)] and '224x224' in out
    else:
        records = json.loads(out)
        assert [float(record['paper_flops']) for record in records] == [1894.5, 1825.6]


def test_a_config(capsys):
    config = ROOT / 'configs' / 'mmpretrain' / 'rednet26.py'
    assert main(['complexity', '--config', str(config), '--shape', '224', '224']) == 0
    row = next(row for row in ROWS if row.model == 'RedNet-26')
    complexity = measure(row)
    expected = f'{complexity.params / 1e6:.3f} M parameters, {complexity.flops / 1e9:.2f} G FLOPs at 224x224\n'
    assert capsys.readouterr().out == expected


def test_a_config_that_does_not_exist(capsys):
    assert main(['complexity', '--config', 'resnet']) == 2
    error = capsys.readouterr().err
    assert "no config is named 'resnet'" in error and error.count('\n') == 1
