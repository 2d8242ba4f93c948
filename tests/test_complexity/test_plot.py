import pytest

from mmrednet.complexity.plot import CURVES, plot_complexity
from mmrednet.complexity.tables import ROWS, Complexity

pytest.importorskip('matplotlib')


def test_figure(tmp_path):
    results = {row: Complexity(int(row.params * 1e6), int(row.flops * 1e9)) for row in ROWS if row.curve}
    png, svg = plot_complexity(results, tmp_path / 'new' / 'figure.png')
    assert png.read_bytes().startswith(b'\x89PNG') and '</svg>' in svg.read_text()


def test_every_curve_has_a_style():
    assert set(CURVES) == {row.curve for row in ROWS if row.table in ('1', 'F2')}
