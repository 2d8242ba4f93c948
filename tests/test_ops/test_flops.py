import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmrednet.ops import fused_involution2d, involution2d, window_product2d


@pytest.mark.parametrize('stride', (1, 2))
def test_torch_counts_two_flops_for_a_multiply_add(stride):
    x = torch.rand(2, 8, 6, 10, requires_grad=True)
    kernel = torch.rand(2, 2, 3, 5, 6 // stride, 10 // stride, requires_grad=True)
    forward = 2 * 2 * 8 * (6 // stride) * (10 // stride) * 15
    with FlopCounterMode(display=False) as counter:
        out = involution2d(x, kernel, stride)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * forward


def test_torch_counts_both_parts_of_the_fused_operator():
    x, features, weight = torch.rand(2, 8, 6, 10), torch.rand(2, 4, 6, 10), torch.rand(30, 4, 1, 1)
    with FlopCounterMode(display=False) as unfused:
        involution2d(x, torch.conv2d(features, weight).unflatten(1, (2, 3, 5)))
    with FlopCounterMode(display=False) as fused:
        fused_involution2d(x, features, weight, None, (3, 5))
    assert fused.get_total_flops() == unfused.get_total_flops()


@pytest.mark.parametrize('fused', (False, True))
def test_mmengine_counts_multiply_adds(fused):
    analysis = pytest.importorskip('mmengine.analysis')
    import mmrednet.registry  # noqa: F401

    class Layer(torch.nn.Module):
        def forward(self, x, features, weight):
            if fused:
                return fused_involution2d(x, features, weight, None, 5, 2)
            return involution2d(x, torch.conv2d(features, weight).unflatten(1, (2, 5, 5)), 2)

    inputs = torch.rand(1, 16, 9, 8), torch.rand(1, 3, 5, 4), torch.rand(50, 3, 1, 1)
    flops, activations = (
        analyzer(Layer(), inputs).unsupported_ops_warnings(False)
        for analyzer in (analysis.FlopAnalyzer, analysis.ActivationAnalyzer)
    )
    assert flops.total() == 5 * 4 * (50 * 3 + 16 * 25)
    assert activations.total() == 5 * 4 * (16 if fused else 50 + 16)
    assert not any('mmrednet' in op for analyzer in (flops, activations) for op in analyzer.unsupported_ops())


def test_mmengine_counts_the_products_of_attention():
    analysis = pytest.importorskip('mmengine.analysis')
    import mmrednet.registry  # noqa: F401

    class Products(torch.nn.Module):
        def forward(self, query, key):
            return window_product2d(query, key, (3, 5), groups=2, stride=2)

    flops = analysis.FlopAnalyzer(Products(), (torch.rand(2, 8, 3, 5), torch.rand(2, 8, 6, 10)))
    assert flops.unsupported_ops_warnings(False).total() == 2 * 8 * 3 * 5 * 15
    assert not flops.unsupported_ops()


def test_torch_counts_the_products_of_attention():
    query, key = torch.rand(2, 8, 6, 10, requires_grad=True), torch.rand(2, 8, 6, 10, requires_grad=True)
    forward = 2 * 2 * 8 * 6 * 10 * 15
    with FlopCounterMode(display=False) as counter:
        out = window_product2d(query, key, (3, 5), groups=2)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * forward
