"""Attention over a whole map and along an axis, against loops in float64 that follow the papers' formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmrednet.layers import AugmentedConv2d, AxialAttention
from mmrednet.layers.global_attention import resize_table

pytestmark = pytest.mark.usefixtures('in_float64')


def give_statistics(module):
    """Gives norm layers in evaluation mode statistics and parameters that change their input."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            for value in (norm.weight, norm.bias, norm.running_mean):
                nn.init.normal_(value)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return module.eval()


def normed(norm, x, channels):
    """Returns evaluation-mode batch norm of these channels, the last dimension of x."""
    x = (x - norm.running_mean[channels]) / (norm.running_var[channels] + norm.eps).sqrt()
    return x * norm.weight[channels] + norm.bias[channels]


def attend_everywhere(layer, x):
    """Returns the attention of one image (C, H, W) before the output's convolution, pixel by pixel (eqs. 3 to 5)."""
    kqv = layer.conv_kqv(x[None])[0]
    (_, height, width), keys, heads = kqv.shape, layer.key_channels, layer.heads
    k, q, v = kqv[:keys], kqv[keys : 2 * keys], kqv[2 * keys :]
    d, dv = keys // heads, len(v) // heads
    rows, columns = layer.key_rel_h, layer.key_rel_w
    out = torch.zeros(heads, height * width, dv)
    for h in range(heads):
        own, values = slice(h * d, h * d + d), v[h * dv : h * dv + dv].flatten(1)
        for i in range(height):
            for j in range(width):
                logits = []
                for y in range(height):
                    for z in range(width):
                        r = rows[y - i + height - 1] + columns[z - j + width - 1]
                        logits.append(q[own, i, j] @ (k[own, y, z] + r))
                out[h, i * width + j] = values @ (torch.stack(logits) / d**0.5).softmax(0)
    return out


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('pool', [None, 'attention', 'all'])
def test_augmented_convolution(stride, pool):
    x = torch.randn(1, 6, 10, 8)
    pooled = x if pool is None else F.avg_pool2d(x, 3, 2, 1)
    size = [-(-pixels // stride) for pixels in pooled.shape[2:]]
    layer = AugmentedConv2d(6, 11, 3, 8, 4, size, heads=2, stride=stride, pool=pool)
    attended = attend_everywhere(layer, pooled[0]).transpose(1, 2).reshape(1, 4, *size)
    parts = [layer.conv_out(pooled if pool == 'all' else x), layer.attn_out(attended)]
    out = layer(x)
    assert out.shape == (1, 11, 10 // stride, 8 // stride)
    expected = [nn.Upsample(out.shape[2:], mode='bilinear')(part) for part in parts]
    assert torch.allclose(out, torch.cat(expected, 1))


def test_augmented_convolution_of_the_released_checkpoint():
    layer = AugmentedConv2d(6, 11, 3, 8, 4, (3, 4), heads=2, transpose_values=False)
    x = torch.randn(1, 6, 3, 4)
    expected = layer.attn_out(attend_everywhere(layer, x[0]).reshape(1, 4, 3, 4))
    assert torch.allclose(layer(x)[:, 7:], expected)


@pytest.mark.parametrize('axis', ['height', 'width'])
@pytest.mark.parametrize('span', [None, 1, 5])
def test_axial_attention_is_eq_4(axis, span):
    layer = give_statistics(AxialAttention(6, 8, axis, 7, heads=2, span=span))
    x = torch.randn(2, 6, 7, 5) if axis == 'height' else torch.randn(2, 6, 5, 7)
    out = layer(x)
    reach = 7 if span is None else span // 2
    lines = x.permute(0, 3, 2, 1) if axis == 'height' else x.permute(0, 2, 3, 1)
    out = out.permute(0, 3, 2, 1) if axis == 'height' else out.permute(0, 2, 3, 1)
    for line, actual in zip(lines.flatten(0, 1), out.flatten(0, 1), strict=True):
        qkv = normed(layer.bn_qkv, line @ layer.qkv_transform.weight[:, :, 0].t(), slice(None))
        for o in range(7):
            near = [p for p in range(7) if abs(p - o) <= reach]
            for h in range(2):
                q, k, v = qkv[:, 8 * h : 8 * h + 8].split([2, 2, 4], 1)
                logits, values = [], []
                for p in near:
                    backward, forward = layer.relative[:, o - p + 6], layer.relative[:, p - o + 6]
                    terms = torch.stack([q[o] @ k[p], q[o] @ backward[:2], k[p] @ forward[2:4]])
                    logits.append(normed(layer.bn_similarity, terms, [h, 2 + h, 4 + h]).sum())
                    values.append(torch.stack([v[p], backward[4:]], 1))
                weighted = sum(w * value for w, value in zip(torch.stack(logits).softmax(0), values, strict=True))
                expected = normed(layer.bn_output, weighted.flatten(), slice(8 * h, 8 * h + 8)).view(4, 2).sum(1)
                assert torch.allclose(actual[o, 4 * h : 4 * h + 4], expected)


def test_tables_of_other_sizes():
    table = torch.arange(-3.0, 4)[None]  # entry d holds d: the distance in pixels
    assert resize_table(table, 4).tolist() == table.tolist()
    assert resize_table(table, 2).tolist() == [[-1, 0, 1]]
    assert torch.allclose(resize_table(table, 7), torch.arange(-6.0, 7)[None] / 2)


@pytest.mark.parametrize(
    'layer',
    [
        lambda: AugmentedConv2d(8, 12, 3, 8, 4, 6, heads=4, pool='attention'),
        lambda: AxialAttention(8, 16, 'height', 6),
        lambda: AxialAttention(8, 16, 'width', 6, span=15),
    ],
)
@pytest.mark.parametrize('size', [(5, 9), (13, 6), (1, 1)])
def test_any_size_of_map(layer, size):
    layer = layer()
    x = torch.randn(2, 8, *size)
    out = layer(x)
    assert out.shape == (2, *out.shape[1:2], *size)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize(
    ('build', 'text'),
    [
        (lambda: AugmentedConv2d(8, 16, 3, 12, 8, 7), 'key_channels must be a multiple of the 8 heads, but is 12'),
        (lambda: AugmentedConv2d(8, 16, 3, 16, 4, 7), 'value_channels must be a multiple of the 8 heads, but is 4'),
        (lambda: AugmentedConv2d(8, 8, 3, 8, 8, 7), 'value_channels must be less than the 8 out_channels'),
        (lambda: AugmentedConv2d(8, 16, 2, 8, 8, 7), 'kernel_size must be odd, but is 2'),
        (lambda: AugmentedConv2d(8, 16, 3, 8, 8, 7, pool='max'), "'attention' or 'all', but is 'max'"),
        (lambda: AxialAttention(8, 24, 'height', 7), 'channels must be a multiple of 16.* but is 24'),
        (lambda: AxialAttention(8, 16, 'depth', 7), "axis must be one of .* but is 'depth'"),
        (lambda: AxialAttention(8, 16, 'width', 7, span=4), 'span must be an odd number of pixels.* but is 4'),
    ],
)
def test_errors_name_the_argument(build, text):
    with pytest.raises(ValueError, match=text):
        build()
