"""The operators in eight threads at once, and in data loader workers that are forked or spawned."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_ops.computed import Computed, compute
from torch.utils.data import DataLoader

from mmrednet.ops import involution2d


def equal(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize('rounds', (5, pytest.param(500, marks=pytest.mark.slow)))
def test_eight_threads(rounds):
    expected = [compute(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(rounds):
            assert all(map(equal, pool.map(compute, range(8), timeout=600), expected))


@pytest.mark.parametrize('channels_last', (False, True))
@pytest.mark.parametrize('stride', (1, 2))
def test_the_result_does_not_depend_on_the_number_of_threads(stride, channels_last):
    """The work is divided by rows, and most heights are no multiple of the rows of a tile."""
    before = torch.get_num_threads()
    try:
        for height in range(5, 24):
            images = torch.randn(2, 1, 32, height, 40)
            x, grad = images.movedim(2, -1).contiguous().movedim(-1, 2) if channels_last else images
            x = x.requires_grad_()
            kernel = torch.randn(1, 2, 7, 7, -(-height // stride), 40 // stride, requires_grad=True)
            results = []
            for threads in (1, 2, 3, 8):
                torch.set_num_threads(threads)
                out = involution2d(x, kernel, stride)
                results.append([out, *torch.autograd.grad(out, (x, kernel), grad[..., ::stride, ::stride])])
            assert all(equal(result, results[0]) for result in results), height
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize('method', ('fork', pytest.param('spawn', marks=pytest.mark.full)))
def test_data_loader_workers(method):
    """The process has used the operators in two threads before. A forked worker must not wait for these threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = [compute(index) for index in range(8)]
        options = dict(batch_size=None, num_workers=2, multiprocessing_context=method, timeout=120)
        assert all(map(equal, DataLoader(Computed(), **options), expected))
    finally:
        torch.set_num_threads(before)
