import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmrednet.ops import fused_involution2d, involution2d


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
    with FlopCounterMode(display=False) as apart:
        involution2d(x, torch.conv2d(features, weight).unflatten(1, (2, 3, 5)))
    with FlopCounterMode(display=False) as fused:
        fused_involution2d(x, features, weight, None, (3, 5))
    assert fused.get_total_flops() == apart.get_total_flops()


@pytest.mark.parametrize('fused', (False, True))
def test_mmengine_counts_multiply_adds(fused):
    analysis = pytest.importorskip('mmengine.analysis')
    from mmrednet.layers import Involution

    layer = Involution(16, 5, stride=2, fused=fused).eval()
    x = torch.rand(1, 16, 9, 8)
    counter = analysis.FlopAnalyzer(layer, (x,))
    counter.unsupported_ops_warnings(False)
    assert counter.by_operator()['involution2d'] == 16 * 5 * 4 * 25
    assert 'mmrednet::involution2d' not in counter.unsupported_ops()
