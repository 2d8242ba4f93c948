import pytest

from mmrednet.benchmark.plot import plot_results
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
