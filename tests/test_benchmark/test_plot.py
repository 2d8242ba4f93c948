import pytest
from helpers import keep_figures

from mmrednet.benchmark.plot import plot_results
from mmrednet.benchmark.timing import Result

pytest.importorskip('matplotlib')
SHAPES = ('64x56x56, K = 7', '128x56x56, K = 7, stride 2')


def test_bars_are_medians_with_their_quartiles(tmp_path, monkeypatch):
    times = {('floor', SHAPES[0]): 1, ('floor', SHAPES[1]): 2, ('cpu', SHAPES[0]): 4, ('cpu', SHAPES[1]): 8}
    results = [
        Result({'shape': shape, 'batch': 8, 'phase': phase}, name, 'ms', (2.0 * ms, 1.0 * ms, 3.0 * ms))
        for phase in ('forward', 'backward')
        for (name, shape), ms in times.items()
    ]
    figures = keep_figures(monkeypatch)
    path = plot_results(results, tmp_path / 'new' / 'operator.png')
    assert path.read_bytes().startswith(b'\x89PNG')
    assert [axis.get_title() for axis in figures[0].axes] == ['batch 8, phase forward', 'batch 8, phase backward']
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ['floor', 'cpu']
    for axis in figures[0].axes:
        assert axis.get_yscale() == 'log' and axis.get_ylabel() == 'ms'
        assert [tick.get_text() for tick in axis.get_xticklabels()] == [*SHAPES]
        bars = [container for container in axis.containers if hasattr(container, 'patches')]
        drawn = {(bar.get_label(), SHAPES[round(bar.patches[0].get_center()[0])]): bar for bar in bars}
        assert drawn.keys() == times.keys()
        for key, bar in drawn.items():
            assert bar.patches[0].get_height() == 2 * times[key]
            (line,) = bar.errorbar.lines[2][0].get_segments()
            assert line[:, 1].tolist() == [1.5 * times[key], 2.5 * times[key]]


def test_many_models_in_one_panel(tmp_path, monkeypatch):
    """The figure and the backend that the caller has chosen do not change."""
    import matplotlib

    names = [f'model {i}' for i in range(12)]
    results = [Result({'batch': 1, 'phase': 'inference'}, name, 'MiB', (0.5,)) for name in names]
    figures = keep_figures(monkeypatch)
    for backend in ('svg', 'agg'):
        matplotlib.use(backend)
        plot_results(results, tmp_path / 'networks.png')
        assert matplotlib.get_backend() == backend
    (axis,) = figures[0].axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ['inference'] and axis.get_ylabel() == 'MiB'
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == names
    assert len({bar.patches[0].get_facecolor() for bar in axis.containers if hasattr(bar, 'patches')}) == 10
