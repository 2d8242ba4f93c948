import pytest

from mmrednet.benchmark.plot import plot_results, plot_roofline
from mmrednet.benchmark.timing import Result

pytest.importorskip('matplotlib')


def test_plot(tmp_path):
    results = [
        Result({'shape': shape, 'batch': 8, 'pass': phase}, candidate, 'ms', (0.5, 0.25, 0.75))
        for phase in ('forward', 'backward')
        for shape in ('64x56x56, K = 7', '128x56x56, K = 7, stride 2')
        for candidate in ('floor', 'cpu')
    ]
    assert plot_results(results, tmp_path / 'new' / 'operator.png').read_bytes().startswith(b'\x89PNG')


def test_runtimes_and_many_models(tmp_path):
    import matplotlib

    for backend in ('svg', 'agg'):
        matplotlib.use(backend)
        for names in (('RedNet-50', 'ResNet-50'), [f'model {i}' for i in range(12)]):
            labels = {'batch': 1, 'dtype': 'float32', 'runtime': 'ONNX Runtime'}
            results = [Result(labels, name, 'ms', (0.5, 0.25, 0.75)) for name in names]
            assert plot_results(results, tmp_path / 'runtimes.png').read_bytes().startswith(b'\x89PNG')
        assert matplotlib.get_backend() == backend


def test_roofline(tmp_path, monkeypatch):
    """The line is what the fastest copy says: 4e6 bytes in 0.5 ms are 8 GB/s, and 1e6 bytes take 0.125 ms."""
    results = [
        Result({'shape': str(size), 'batch': 8, 'pass': 'forward'}, candidate, 'ms', (time,), size)
        for size, times in {1_000_000: (0.25, 1, 2), 4_000_000: (0.5, 3, 9)}.items()
        for candidate, time in zip(('floor', 'cpu', 'unfused'), times, strict=True)
    ]
    from matplotlib.figure import Figure

    axes, save = [], Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda f, *args, **kw: axes.extend(f.axes) or save(f, *args, **kw))
    path = plot_roofline(results, tmp_path / 'new' / 'roofline.png')
    assert path.read_bytes().startswith(b'\x89PNG')
    (axis,) = axes
    drawn = {line.get_label(): line.get_ydata() for line in axis.lines}
    assert drawn.keys() == {'a copy of the bytes', 'at the fastest copy', 'cpu'}
    assert list(drawn['at the fastest copy']) == [0.125, 0.5] and list(drawn['cpu']) == [1, 3]
    assert '8.0 GB/s' in axis.get_title()
    with pytest.raises(ValueError, match="candidate 'floor'"):
        plot_roofline([result for result in results if result.candidate != 'floor'], path)
