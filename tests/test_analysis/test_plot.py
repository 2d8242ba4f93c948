import pytest

from mmrednet.analysis.plot import plot_complexity, plot_results
from mmrednet.analysis.tables import ROWS, Complexity
from mmrednet.analysis.timing import Result

pytest.importorskip('matplotlib')


def test_figure(tmp_path):
    results = {row: Complexity(int(row.params * 1e6), int(row.flops * 1e9)) for row in ROWS if row.table == '1'}
    png, svg = plot_complexity(results, tmp_path / 'new' / 'figure.png')
    assert png.read_bytes().startswith(b'\x89PNG') and '</svg>' in svg.read_text()


def test_plot(tmp_path):
    results = [
        Result({'shape': shape, 'batch': 8, 'pass': phase}, candidate, 'ms', (0.5, 0.25, 0.75))
        for phase in ('forward', 'backward')
        for shape in ('64x56x56, K = 7', '128x56x56, K = 7, stride 2')
        for candidate in ('floor', 'cpu')
    ]
    assert plot_results(results, tmp_path / 'new' / 'operator.png').read_bytes().startswith(b'\x89PNG')
