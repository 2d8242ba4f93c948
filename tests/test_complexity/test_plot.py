import pytest
from helpers import keep_figures

from mmrednet.complexity.plot import CURVES, plot_complexity
from mmrednet.complexity.tables import ROWS, Complexity

pytest.importorskip('matplotlib')


def test_figure(tmp_path, monkeypatch):
    """Both panels have the curves of the paper's accuracies: one over our FLOPs, one over our parameters."""
    results = {row: Complexity(int(row.params * 1e6), int(row.flops * 1e9)) for row in ROWS if row.curve}
    figures = keep_figures(monkeypatch)
    png, svg = plot_complexity(results, tmp_path / 'new' / 'figure.png')
    assert png.read_bytes().startswith(b'\x89PNG') and '</svg>' in svg.read_text()
    for axis, label, unit in zip(figures[0].axes, ('FLOPs (G)', 'Parameters (M)'), ('flops', 'params'), strict=True):
        assert axis.get_xlabel() == label and [line.get_label() for line in axis.lines] == [*CURVES]
        for line in axis.lines:
            rows = [row for row in results if row.curve == line.get_label()]
            assert [*line.get_ydata()] == [row.accuracy for row in rows]
            assert [*line.get_xdata()] == pytest.approx([getattr(row, unit) for row in rows])
        depths = {tuple(text.xy): text.get_text() for text in axis.texts}
        for line in axis.lines[:2]:  # RedNet and ResNet
            points = zip(line.get_xdata(), line.get_ydata(), strict=True)
            assert [depths[point] for point in points] == ['26', '38', '50', '101', '152']


def test_every_curve_has_a_style():
    assert set(CURVES) == {row.curve for row in ROWS if row.table in ('1', 'F2')}
