"""Kernels and heat maps against loops in float64, and where they lie in images."""

from math import ceil

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel, ImgDataPreprocessor
from torch import nn

from mmrednet.layers import Involution
from mmrednet.layers import involution as layer_module
from mmrednet.models.rednet import RedNet
from mmrednet.visualization.kernels import (
    KernelMap,
    cell_size,
    draw_heat_maps,
    draw_kernels,
    find_involution,
    generate_kernel,
    heat_map,
    map_kernels,
    to_pixels,
)


class Brightness(nn.Module):
    """Generates kernels whose values are the brightness of the pixel times the group's number."""

    def __init__(self, channels, groups, kernel_size, stride, padding, dilation):
        super().__init__()
        self.register_buffer(
            'factors', torch.arange(1.0, groups + 1).repeat_interleave(kernel_size[0] * kernel_size[1])
        )

    def forward(self, x):
        return x.mean(1, keepdim=True) * self.factors[:, None, None]


class Toy(BaseModel):
    """Pools images to a quarter of their size and applies an involution."""

    def __init__(self, channels=6, group_channels=3, pad_size_divisor=1, **kwargs):
        super().__init__(ImgDataPreprocessor(pad_size_divisor=pad_size_divisor, pad_value=255))
        self.pool = nn.AvgPool2d(4, ceil_mode=True)
        self.layer = Involution(channels, 3, group_channels=group_channels, in_channels=3, **kwargs)
        self.unused = Involution(6, 3, group_channels=3)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.layer(self.pool(inputs.to(self.unused.conv2.conv.weight)))


@pytest.mark.parametrize('fused', (None, False))
def test_kernels_are_those_that_the_layer_applies(fused, monkeypatch):
    model = Toy(stride=2, fused=fused).double().eval()
    images = torch.randint(256, (2, 3, 33, 46)).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kernel, padded = generate_kernel(model, dict(inputs=list(images)), 'layer')
    assert padded == (33, 46) and not kernel.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    applied = []
    operator = layer_module.involution2d
    monkeypatch.setattr(
        layer_module,
        'involution2d',
        lambda x, kernel, *rest, **kw: applied.append(kernel) or operator(x, kernel, *rest, **kw),
    )
    model(images)  # with gradients, the layer makes its kernels, and no hook is left that stops it
    torch.testing.assert_close(kernel, applied[0].detach(), rtol=1e-12, atol=0)

    maps = heat_map(kernel)
    assert maps.shape == (2, 2, 5, 6)
    for n, group, row, column in np.ndindex(*maps.shape):
        total = 0.0
        for i in range(3):
            for j in range(3):
                total += float(kernel[n, group, i, j, row, column])
        assert float(maps[n, group, row, column]) == pytest.approx(total, rel=1e-12)


def test_the_paper_s_layer():
    """Section 5.3 shows conv3_4: the fourth block of conv3_x, which are the blocks of 28 x 28 pixels."""
    with torch.device('meta'):
        model = nn.ModuleDict(dict(backbone=RedNet(50), neck=Involution(16)))
    assert find_involution(model) == 'backbone.layer2.3.conv2'
    assert find_involution(model, 'backbone.stem.1') == 'backbone.stem.1'
    assert find_involution(nn.Sequential(Involution(16), nn.ReLU(), Involution(16))) == '2'
    assert find_involution(nn.ModuleDict(dict(neck=Involution(16), roi_head=Involution(16)))) == 'neck'


def test_layers_that_cannot_be_drawn():
    model = Toy().eval()
    with pytest.raises(ValueError, match="layer must be .* but is 'pool': give one of layer, unused"):
        find_involution(model, 'pool')
    with pytest.raises(ValueError, match='Linear, has no involution'):
        find_involution(nn.Linear(1, 1))
    regions = nn.ModuleDict(dict(roi_head=nn.ModuleDict(dict(mask_head=Involution(16)))))
    with pytest.raises(ValueError, match='has no involution for whole images'):
        find_involution(regions)
    regions['neck'] = Involution(16)
    with pytest.raises(ValueError, match="whole images, but is 'roi_head.mask_head': give one of neck"):
        find_involution(regions, 'roi_head.mask_head')
    batch = dict(inputs=[torch.zeros(3, 8, 8)])
    with pytest.raises(ValueError, match="'unused', which takes no part"):
        generate_kernel(model, batch, 'unused')
    with pytest.raises(ValueError, match=r'evaluation mode.*model.eval\(\)'):
        generate_kernel(model.train(), batch, 'layer')


@pytest.mark.parametrize('size', ((75, 100), (101, 80), (320, 240)))
def test_a_bright_spot_is_where_its_heat_is(size):
    """The image has one spot, and its heat map one hot cell, at the same place in spite of the network's padding."""
    height, width = size
    y, x, radius = round(0.42 * height), round(0.58 * width), max(size) // 12
    image = np.zeros((height, width, 3), np.uint8)
    image[y - radius : y + radius + 1, x - radius : x + radius + 1] = 255
    model = Toy(3, 1, pad_size_divisor=32, kernel_generation=Brightness).eval()
    (one,) = map_kernels(model, dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)]), 'layer')
    assert np.array_equal(one.image, image)

    figure = draw_heat_maps([one], [1])
    picture, heat = figure.axes[:2]
    # The axes show the whole image and no padding.
    for axis in (picture, heat):
        assert axis.get_xlim() == (-0.5, width - 0.5) and axis.get_ylim() == (height - 0.5, -0.5)
    assert picture.get_aspect() == heat.get_aspect() == 1

    values = heat.images[0].get_array()
    left, right, bottom, top = heat.images[0].get_extent()
    rows, columns = values.shape
    xs = left + (np.arange(columns) + 0.5) * (right - left) / columns
    ys = top + (np.arange(rows) + 0.5) * (bottom - top) / rows
    cell = max(abs(right - left) / columns, abs(bottom - top) / rows)
    # Cells at the border can show the padding, which is white, too.
    inside = [(at > cell) & (at < side - cell) for at, side in ((ys, height), (xs, width))]
    weights = np.where(inside[0][:, None] & inside[1], values, 0)
    assert (weights.sum(0) * xs).sum() / weights.sum() == pytest.approx(x, abs=0.35 * cell)
    assert (weights.sum(1) * ys).sum() / weights.sum() == pytest.approx(y, abs=0.35 * cell)

    # The kernel at the spot is the brightest, in the group's colours, and one away from it is black.
    away = x - 2 * radius - 2 * cell
    figure = draw_kernels(one, [(x, y), (away, y)], [0, 1])
    at, off = (figure.axes[i].images[0].get_array() for i in (1, 4))
    assert at.shape == (3, 3) and (at > 250).all() and (off < 5).all()


def test_cells():
    # 225 is halved to 113, 57 and 29; 75 is a third, which no halving gives.
    assert cell_size(225, 29) == cell_size(232, 29) == 8 and cell_size(225, 75) == 3 and cell_size(9, 1) == 16
    for size in range(1, 300):
        cells = size
        for halvings in range(1, 6):
            cells = ceil(cells / 2)
            assert cells == 1 or cell_size(size, cells) == 2**halvings
    kernel = torch.arange(29 * 29.0).reshape(1, 1, 1, 29, 29)
    one = KernelMap(np.zeros((100, 60, 3), np.uint8), kernel, (225, 232))
    assert one.extent() == (-0.5, 231.5, 231.5, -0.5)
    for x, y, row, column in ((0, 0, 0, 0), (7.4, 0, 0, 0), (7.6, 8, 1, 1), (59, 99, 12, 7)):
        assert one.kernels_at(x, y).item() == row * 29 + column
    with pytest.raises(ValueError, match='60,0 is a place .* give x from 0 to 59 and y from 0 to 99'):
        one.kernels_at(60, 0)


def test_several_images_have_one_scale_for_each_group():
    image = np.zeros((16, 24, 3), np.uint8)
    kernels = [torch.rand(3, 5, 5, 4, 6) + 10 * i for i in range(2)]
    figure = draw_heat_maps([KernelMap(image, kernel, (16, 24)) for kernel in kernels], [2, 0], 'a layer')
    grid = np.array(figure.axes[:6]).reshape(2, 3)
    limits = [[axis.images[0].get_clim() for axis in row[1:]] for row in grid]
    assert limits[0] == limits[1] and limits[0][0] != limits[0][1]
    assert [axis.get_title() for axis in grid[0]] == ['', 'group 2', 'group 0']
    assert np.allclose(grid[1, 1].images[0].get_array(), kernels[1][2].sum((0, 1)))
    pixels = to_pixels(figure)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and len(np.unique(pixels)) > 50
    with pytest.raises(ValueError, match=r'groups must be from 0 to 2 .* but are \[3\]'):
        draw_heat_maps([KernelMap(image, kernels[0], (16, 24))], [3])
