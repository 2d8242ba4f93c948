import pytest
import torch

from mmrednet.benchmark.dimensions import Signal, benchmark_dimensions, signals, unfold
from mmrednet.ops import involution1d, involution3d


@pytest.mark.parametrize(('ours', 'size', 'window'), [(involution1d, (9,), (5,)), (involution3d, (3, 4, 5), (3, 1, 5))])
def test_both_compute_the_same(ours, size, window):
    inputs = Signal(8, size, window, batch=2, dtype=torch.float64).inputs()
    assert torch.allclose(ours(*inputs), unfold(*inputs))


def test_rows():
    problems = [Signal(8, (9,), (5,), phase='training'), Signal(8, (2, 4, 4), (1, 3, 3))]
    results = list(benchmark_dimensions(problems, budget=0))
    assert [(r.labels['shape'], r.candidate) for r in results] == [
        (shape, name) for shape in ('8x9, K = 5', '8x2x4x4, K = 1x3x3') for name in ('involution', 'unfold')
    ]
    assert {len(problem.size) for problem in signals((2,), (torch.float32,), 'cpu')} == {1, 3}
