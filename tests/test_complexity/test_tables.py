from decimal import ROUND_HALF_EVEN, Decimal

import pytest
import torch
from helpers import complexity
from torch import nn

from mmrednet.complexity.flops import count_flops
from mmrednet.complexity.tables import ROWS
from mmrednet.layers import Involution

# Rows in which the paper's number differs from what its text gives.
LRNETS = {'LR-Net-26', 'LR-Net-50', 'LR-Net-101'}
OTHER_PARAMS = {
    'RetinaNet, RedNet-50, involution FPN',
    'Stand-Alone ResNet-38',
    'Stand-Alone ResNet-38, convolution stem',
    'Axial ResNet-M',
    'Axial ResNet-L',
    'Axial ResNet-S, convolution stem',
    'Axial ResNet-M, convolution stem',
    'Axial ResNet-L, convolution stem',
    *LRNETS,
}
OTHER_FLOPS = {
    'Mask R-CNN, ResNet-50, FPN',
    'Mask R-CNN, RedNet-50, FPN',
    'Mask R-CNN, RedNet-50, involution FPN',
    'Stand-Alone ResNet-26',
    'Stand-Alone ResNet-38',
    'Stand-Alone ResNet-50',
    'SAN10, pairwise',
    *LRNETS,
}


@pytest.mark.parametrize('row', ROWS, ids=lambda row: f'{row.table}: {row.model}')
def test_row_of_the_paper(row):
    counted = complexity(row)
    params, flops = counted.params / 1e6, counted.flops / 1e9
    # Some figures are rounded to two digits before, ties to even: 44.549 is printed as 44.6, 25.653 as 25.6.
    rounded = {Decimal(f'{params:.{digits}f}').quantize(Decimal('0.1'), ROUND_HALF_EVEN) for digits in (1, 2)}
    assert (Decimal(str(row.params)) in rounded) == (row.model not in OTHER_PARAMS)
    agrees = abs(flops - row.flops) < 0.06 if row.table[0] == '6' else abs(flops / row.flops - 1) < 0.02
    assert agrees == (row.model not in OTHER_FLOPS)
    assert bool(row.note) == (row.model in OTHER_PARAMS | OTHER_FLOPS)


def test_every_row_is_there():
    tables = [row.table for row in ROWS]
    assert {table: tables.count(table) for table in set(tables)} == {
        '1': 25, 'F2': 9, '3': 11, '4': 3, '5': 2, '6a': 4, '6b': 4, '6c': 4,
    }  # fmt: skip


def test_convention():
    x = torch.empty(1, 8, 6, 6, device='meta')
    with torch.device('meta'):
        assert count_flops(nn.Conv2d(8, 4, 3, padding=1, bias=False), x) == 4 * 36 * 8 * 9
        assert count_flops(nn.Conv2d(8, 4, 3, padding=1, groups=4), x) == 4 * 36 * (2 * 9 + 1)
        assert count_flops(nn.ConvTranspose2d(8, 4, 2, stride=2), x) == 36 * 8 * 4 * 4 + 4 * 144
        assert count_flops(nn.Linear(6, 5), x[0, :, 0]) == 8 * 5 * (6 + 1)
        for norm in (
            nn.BatchNorm2d(8),
            nn.GroupNorm(2, 8),
            nn.LayerNorm(x.shape[1:], device=x.device),
            nn.InstanceNorm2d(8),
        ):
            assert count_flops(norm.eval(), x) == 2 * x.numel()
        assert count_flops(nn.AdaptiveMaxPool2d(1), x) == x.numel()
        assert count_flops(nn.ReLU(), x) == count_flops(nn.MaxPool2d(2), x) == x.numel()
        assert count_flops(nn.AdaptiveAvgPool2d(1), x) == count_flops(nn.AvgPool2d(2), x) == x.numel()
        kernel = torch.empty(1, 2, 3, 3, 3, 3)
        assert count_flops(torch.ops.mmrednet.involution2d, x, kernel, [2, 2], [1, 1], [1, 1]) == 8 * 9 * 9
        products = torch.ops.mmrednet.window_product2d
        assert count_flops(products, x[..., ::2, ::2], x, 2, [3, 3], [2, 2], [1, 1], [1, 1]) == 8 * 9 * 9
        # W0, its BatchNorm and ReLU, W1 with a bias, then the operator.
        layer = Involution(8, 3, group_channels=4).eval()
    assert count_flops(layer, x) == 36 * (8 * 2 + 3 * 2 + 18 * (2 + 1) + 8 * 9)
