"""Stand-Alone ResNet and LR-Net, against their papers' numbers and against loops in float64."""

from math import ceil

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models import ResNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmrednet.layers import LocalAttention
from mmrednet.layers.attention import Projection
from mmrednet.models.blocks import Bottleneck
from mmrednet.models.lrnet import LRNet, make_local_relation
from mmrednet.models.sasa import AttentionStem, StandAloneResNet, make_attention

HEAD = 2048 * 1000 + 1000  # parameters of the classifier
# Small networks. Each has outputs of 64, 128, 256 and 512 channels.
SMALL = {
    'sasa': lambda **kwargs: StandAloneResNet(26, stem_channels=16, base_channels=16, **kwargs),
    'sasa, conv stem': lambda **kwargs: StandAloneResNet(26, stem='conv', stem_channels=16, base_channels=16, **kwargs),
    'lrnet': lambda **kwargs: LRNet(26, stem_channels=16, base_channels=20, out_channels=64, **kwargs),
}


@pytest.fixture(params=SMALL)
def build(request):
    torch.manual_seed(0)
    return SMALL[request.param]


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ('stem', 'depth', 'params', 'gigas'),
    [
        ('conv', 26, 10_331_264, 2.242),
        ('conv', 38, 14_173_384, 2.863),
        ('conv', 50, 18_015_504, 3.483),
        # The widths of the embeddings that the stem's mixtures are made from are not published. These use 64.
        ('attention', 26, 10_323_888, 2.349),
        ('attention', 38, 14_166_008, 2.970),
        ('attention', 50, 18_008_128, 3.590),
    ],
)
def test_stand_alone_resnet_has_the_parameters_and_multiply_adds_of_its_paper(stem, depth, params, gigas):
    with torch.device('meta'):
        network, x = StandAloneResNet(depth, stem=stem), torch.empty(1, 3, 224, 224)
        assert count(network) + HEAD == params
        with FlopCounterMode(display=False) as counter:
            network(x)
    computed = counter.get_total_flops() / 2 + 2048 * 1000
    # The paper multiplies q with r for each of the 49 taps. We do it for 7 rows and 7 columns, on halves of q.
    sides = [56 >> max(i - (block == 0), 0) for i in range(4) for block in range(len(network.dilations[i]))]
    widths = [64 << i for i in range(4) for _ in network.dilations[i]]
    computed += sum(side**2 * width * (49 - 7) for side, width in zip(sides, widths, strict=True))
    if stem == 'attention':
        # The paper computes four values of a pixel and mixes them. We mix the four matrices.
        computed += 224**2 * 64 * (4 * 3 + 4 - 3)
    assert round(computed / 1e9, 3) == pytest.approx(gigas, abs=0.0011)


@pytest.mark.parametrize(('depth', 'width'), [(26, 100), (50, 100), (101, 100), (26, 101), (101, 103)])
def test_lrnet_has_the_parameters_of_its_description(depth, width):
    def relation(c):
        groups = ceil(c / 8)
        hidden = groups // 2
        return 2 * (c + 1) * groups + 3 * hidden + (hidden + 1) * groups + (c + 1) * c

    expected, i = 3 * 64 + 2 * 64 + relation(64) + 2 * 64, 64
    for stage, blocks in enumerate({26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]):
        w, o = width << stage, 256 << stage
        expected += i * o + 2 * o
        for _ in range(blocks):
            expected += i * w + 2 * w + relation(w) + 2 * w + w * o + 2 * o
            i = o
    with torch.device('meta'):
        assert count(LRNet(depth, base_channels=width)) == expected


@pytest.mark.parametrize('size', [(64, 64), (61, 35), (9, 5)])
def test_output_shapes(build, size):
    outs = build(out_indices=(0, 1, 2, 3)).eval()(torch.rand(1, 3, *size))
    assert [out.shape for out in outs] == [(1, 64 << i, *(-(-s // 2 ** (i + 2)) for s in size)) for i in range(4)]


def test_dilated_stages_keep_the_resolution(build):
    network = build(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True).eval()
    assert network(torch.rand(1, 3, 65, 65))[0].shape == (1, 512, 9, 9)
    dilations = [m.dilation[0] for m in network.layer3.modules() if isinstance(m, LocalAttention)]
    assert dilations[:2] == [1, 2]


def test_frozen_stages_and_recomputed_activations(build):
    x, gradients = torch.rand(2, 3, 64, 64), []
    for with_cp in (False, True):
        torch.manual_seed(0)
        network = build(frozen_stages=1, with_cp=with_cp, zero_init_residual=False)
        network.init_weights()
        network.train()(x)[0].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert (gradient is None) == name.startswith(('stem.', 'layer1.')), name
        if gradient is not None:
            torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_projections_keep_their_own_initial_values(build):
    """Kaiming's initialisation of convolutions has twice their variance."""
    network = build()
    network.init_weights()
    projections = [module for module in network.layer4.modules() if isinstance(module, Projection)]
    for module in projections:
        assert module.weight.std().item() == pytest.approx(module.in_channels**-0.5, rel=0.05)
    assert len(projections) == (3 if isinstance(network, StandAloneResNet) else 0)
    assert (network.layer4[0].bn3.weight == 0).all()


def test_the_weights_of_a_resnet_are_refused(build):
    network = build()
    with pytest.raises(ValueError, match=f'{type(network).__name__} cannot load the weights of a ResNet'):
        network.load_state_dict(ResNet(50).state_dict(), strict=False)


def batch_norm(norm, x):
    """Applies a norm layer in evaluation mode to pixels (C, H, W)."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def matrix(conv):
    return conv.weight[:, :, 0, 0]


def attend(layer, x, heads, size):
    """Returns local self-attention of pixels (C, H, W) by eq. 3 of Stand-Alone ResNet, in loops."""
    phi, half = layer.kernel_generation, size // 2
    query, key, value = (torch.einsum('dc,cij->dij', matrix(m), x) for m in (phi.query, phi.key, layer.value))
    out, channels = torch.zeros_like(value), len(value) // heads
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            for head in range(heads):
                own, logits, values = slice(head * channels, (head + 1) * channels), [], []
                for a in range(size):
                    for b in range(size):
                        y, z = i + a - half, j + b - half
                        inside = 0 <= y < x.shape[1] and 0 <= z < x.shape[2]
                        k, v = (t[own, y, z] if inside else torch.zeros(channels) for t in (key, value))
                        logits.append(query[own, i, j] @ (k + torch.cat([phi.rows[:, a], phi.columns[:, b]])))
                        values.append(v)
                out[own, i, j] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return out


def randomise(module):
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if 'running_var' in name else torch.randn_like(tensor))
    return module.eval()


@torch.no_grad()
@pytest.mark.parametrize('stride', [1, 2])
def test_a_block_of_stand_alone_resnet(stride, in_float64):
    downsample = nn.Conv2d(6, 12, 1, stride, bias=False)
    block = randomise(
        Bottleneck(6, 4, 12, lambda **kwargs: make_attention(kernel_size=3, groups=2, **kwargs), stride, 1, downsample)
    )
    x = torch.randn(6, 5, 4)
    attention = block.conv2 if stride == 1 else block.conv2[0]
    hidden = batch_norm(block.bn1, torch.einsum('dc,cij->dij', matrix(block.conv1), x)).relu()
    hidden = attend(attention, hidden, 2, 3)
    if stride == 2:  # the average of the pixels that exist
        rows, columns = range(0, 5, 2), range(0, 4, 2)
        hidden = torch.stack(
            [torch.stack([hidden[:, i : i + 2, j : j + 2].mean((1, 2)) for j in columns], 1) for i in rows], 1
        )
    hidden = batch_norm(block.bn2, hidden).relu()
    out = batch_norm(block.bn3, torch.einsum('dc,cij->dij', matrix(block.conv3), hidden))
    out = out + torch.einsum('dc,cij->dij', matrix(downsample), x[:, ::stride, ::stride])
    torch.testing.assert_close(block(x[None])[0], out.relu())


@torch.no_grad()
def test_the_attention_stem(in_float64):
    """In an image of 6x5 pixels, whose blocks of 4x4 reach beyond its borders."""
    stem, x = randomise(AttentionStem(3, 16)), torch.randn(3, 6, 5)
    out, padded = stem(x[None])[0], F.pad(x, (0, 3, 0, 2))
    weights = {
        (a, b): torch.stack(
            [(stem.row_embeddings[a] + stem.column_embeddings[b]) @ nu for nu in stem.mixtures]
        ).softmax(0)
        for a in range(4)
        for b in range(4)
    }
    for i in range(6):
        for j in range(5):
            top, left = i - i % 4, j - j % 4
            for head in range(4):
                own, logits, values = slice(4 * head, 4 * head + 4), [], []
                query = (stem.query.weight @ x[:, i, j])[own]
                for (a, b), p in weights.items():
                    pixel = padded[:, top + a, left + b]
                    r = torch.cat([stem.rows[a - i % 4 + 3], stem.columns[b - j % 4 + 3]])
                    logits.append(query @ ((stem.key.weight @ pixel)[own] + r))
                    values.append((sum(w * m for w, m in zip(p, stem.values, strict=True)) @ pixel)[own])
                expected = torch.stack(logits).softmax(0) @ torch.stack(values)
                torch.testing.assert_close(out[own, i, j], expected)


@torch.no_grad()
@pytest.mark.parametrize('stride', [1, 2])
def test_a_local_relation_whose_last_group_has_fewer_channels(stride, in_float64):
    layer = randomise(make_local_relation(12, kernel_size=3, stride=stride))
    x = torch.randn(12, 5, 4)
    kernels = layer.kernel_generation(x[None])[0].unflatten(0, (2, 3, 3))
    padded, transform = F.pad(x, (1, 1, 1, 1)), layer.output[1]
    out = layer(x[None])[0]
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            window = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
            aggregated = torch.stack([(kernels[c // 8, :, :, i, j] * window[c]).sum() for c in range(12)])
            torch.testing.assert_close(out[:, i, j], matrix(transform) @ aggregated + transform.bias)


@pytest.mark.parametrize(
    ('network', 'arguments', 'text'),
    [
        (StandAloneResNet, dict(depth=101), 'depth must be one of .*26, 38, 50.*, but is 101'),
        (StandAloneResNet, dict(depth=26, stem='deep'), "stem must be one of .*'attention', 'conv'.*, but is 'deep'"),
        (StandAloneResNet, dict(depth=26, stem_channels=20), "stem_channels must be a multiple of 8 .* but is 20"),
        (StandAloneResNet, dict(depth=26, groups=7), 'groups must be a divisor of the 64 channels'),
        (StandAloneResNet, dict(depth=26, groups=64), 'even number of channels for each head'),
        (StandAloneResNet, dict(depth=26, kernel_size=4), "padding None means 'same'"),
        (LRNet, dict(depth=38), 'depth must be one of .*26, 50, 101.*, but is 38'),
        (LRNet, dict(depth=26, similarity='cosine'), "similarity must be one of .* but is 'cosine'"),
        (LRNet, dict(depth=26, out_indices=(4,)), 'out_indices must name stages from 0 to 3'),
    ],
    ids=str,
)  # fmt: skip
def test_errors_name_the_argument(network, arguments, text):
    with pytest.raises(ValueError, match=text):
        network(**arguments)


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="LRNet has no argument 'style'.*_delete_=True"):
        LRNet(26, style='pytorch')
