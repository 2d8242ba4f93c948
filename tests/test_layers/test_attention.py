"""The layers of the family, against loops in float64 that follow the papers' formulas."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmrednet.layers import (
    Involution,
    LocalAttention,
    LocalRelationKernelGeneration,
    NeighbourhoodKernelGeneration,
    PairwiseKernelGeneration,
    PatchwiseKernelGeneration,
    SelfAttentionKernelGeneration,
)
from mmrednet.layers.attention import SIMILARITIES

FAMILY = (
    SelfAttentionKernelGeneration,
    LocalRelationKernelGeneration,
    PairwiseKernelGeneration,
    PatchwiseKernelGeneration,
    NeighbourhoodKernelGeneration,
)


pytestmark = pytest.mark.usefixtures('in_float64')


def window(x, i, j, size, outside):
    """Returns the pixels (C,) of a window of one image (C, H, W) around a pixel, row by row."""
    pixels, half = [], size // 2
    for y in range(i - half, i + half + 1):
        for z in range(j - half, j + half + 1):
            if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                pixels.append(x[:, y, z])
            else:
                pixels.append(outside(y, z))
    return pixels


@pytest.mark.parametrize('border', ['zeros', 'mask', 'reflect'])
@pytest.mark.parametrize(('content', 'position'), [(True, True), (True, False), (False, True)])
def test_self_attention(border, content, position):
    heads, size, x = 2, 3, torch.randn(1, 8, 5, 4)
    phi = partial(SelfAttentionKernelGeneration, content=content, position=position)
    layer = LocalAttention(8, size, groups=heads, kernel_generation=phi, border=border)
    phi = layer.kernel_generation
    query, value = phi.query(x)[0], layer.value(x)[0]
    key = phi.key(x)[0] if content else torch.zeros_like(query)

    def outside(x, y, z):
        if border == 'reflect':
            return F.pad(x[None], (1, 1, 1, 1), mode='reflect')[0, :, y + 1, z + 1]
        return torch.zeros(8) if border == 'zeros' else torch.full((8,), float('nan'))

    expected = torch.zeros_like(value)
    for i in range(5):
        for j in range(4):
            keys = window(key, i, j, size, partial(outside, key))
            values = window(value, i, j, size, partial(outside, value))
            for head in range(heads):
                own = slice(4 * head, 4 * head + 4)
                logits = []
                for tap, k in enumerate(keys):
                    r = torch.zeros(4)
                    if position:
                        r = torch.cat([phi.rows[:, tap // size], phi.columns[:, tap % size]])
                    logits.append(query[own, i, j] @ (k[own] + r))
                logits = torch.stack(logits)
                weights = logits.masked_fill(logits.isnan(), float('-inf')).softmax(0)
                expected[own, i, j] = sum(w * v[own].nan_to_num() for w, v in zip(weights, values, strict=True))
    assert torch.allclose(layer(x)[0], expected)


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_local_relation(similarity):
    formulas = {
        'product': lambda q, k: q * k,
        'key': lambda q, k: k,
        'difference': lambda q, k: -abs(q - k),
        'relative difference': lambda q, k: -abs(q - k) / (abs(q) + abs(k) + 1),
        'relative square': lambda q, k: -((q - k) ** 2) / (abs(q * k) + 1),
        'square': lambda q, k: -((q - k) ** 2),
    }
    x = torch.randn(1, 8, 4, 5)
    phi = LocalRelationKernelGeneration(8, 2, (3, 3), (1, 1), (1, 1), (1, 1), similarity=similarity)
    query, key = phi.query(x)[0], phi.key(x)[0]
    kernels = phi(x).unflatten(1, (2, 9))[0]
    for i in range(4):
        for j in range(5):
            for group in range(2):
                logits = []
                for tap, k in enumerate(window(key, i, j, 3, lambda y, z: None)):
                    right, up = tap % 3 - 1, 1 - tap // 3
                    hidden = phi.prior[0](torch.tensor([right, up], dtype=torch.float64).view(1, 2, 1, 1)).relu()
                    prior = phi.prior[2](hidden)[0, group, 0, 0]
                    inside = k is not None
                    logits.append(formulas[similarity](query[group, i, j], k[group]) + prior if inside else -torch.inf)
                expected = torch.tensor([float(logit) for logit in logits]).softmax(0)
                assert torch.allclose(kernels[group, :, i, j], expected)


def test_san_pairwise_is_eq_3():
    x = torch.randn(1, 32, 5, 4)
    phi = PairwiseKernelGeneration(32, 2, (3, 3), (1, 1), (1, 1), (1, 1)).eval()
    centre, neighbour = phi.conv1(x)[0], phi.conv2(x)[0]
    rows, columns = torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 4)
    place = phi.conv_p(torch.stack([columns.expand(5, 4), rows[:, None].expand(5, 4)])[None])[0]
    kernels = phi(x).unflatten(1, (2, 9))[0]

    def reflected(x):
        return lambda y, z: F.pad(x[None], (1, 1, 1, 1), mode='reflect')[0, :, y + 1, z + 1]

    for i in range(5):
        for j in range(4):
            features = window(neighbour, i, j, 3, reflected(neighbour))
            places = window(place, i, j, 3, reflected(place))
            seen = [torch.cat([centre[:, i, j] - f, place[:, i, j] - p]) for f, p in zip(features, places, strict=True)]
            weights = phi.conv_w(torch.stack(seen, 1)[None, :, :, None])[0, :, :, 0].softmax(1)
            assert torch.allclose(kernels[:, :, i, j], weights)


def test_san_patchwise_is_eq_6():
    x = torch.randn(1, 32, 5, 4)
    phi = PatchwiseKernelGeneration(32, 2, (3, 3), (1, 1), (1, 1), (1, 1)).eval()
    centre, neighbour = phi.conv1(x)[0], phi.conv2(x)[0]
    padded = F.pad(neighbour[None], (1, 1, 1, 1), mode='reflect')[0]
    for i in range(5):
        for j in range(4):
            features = torch.stack([padded[:, i + u, j + v] for u in range(3) for v in range(3)], 1)
            seen = torch.cat([centre[:, i, j], features.flatten()])
            expected = phi.conv_w(seen.view(1, -1, 1, 1)).flatten()
            assert torch.allclose(phi(x)[0, :, i, j], expected)


def test_interleaved_groups():
    layer = LocalAttention(8, 3, groups=2, value=nn.Identity(), interleaved=True)
    x = torch.randn(1, 8, 4, 4)
    kernel = layer.kernel_generation(x).unflatten(1, (2, 9))[0]
    out = layer(x)[0]
    padded = F.pad(x[0], (1, 1, 1, 1))
    for c in range(8):
        windows = torch.stack([padded[c, u : u + 4, v : v + 4] for u in range(3) for v in range(3)])
        assert torch.allclose(out[c], (kernel[c % 2] * windows).sum(0))


def test_kernels_depend_on_the_neighbourhood():
    phi = partial(NeighbourhoodKernelGeneration, act_layer=None)  # a ReLU would hide some differences
    layer = Involution(16, 3, group_channels=8, kernel_generation=phi).eval()
    x = torch.randn(1, 16, 7, 7)
    changed = x.clone()
    changed[..., 3, 3] += 1
    differs = (layer.generate_kernel(x) != layer.generate_kernel(changed)).any(3).any(2).any(1)[0]
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[2:5, 2:5] = True
    assert torch.equal(differs, expected)


@pytest.mark.parametrize('phi', FAMILY)
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('options', [{}, dict(kernel_size=3, dilation=2), dict(kernel_size=5, padding=0)], ids=str)
def test_each_generates_kernels_for_an_involution(phi, stride, options):
    layer = Involution(32, **{'kernel_size': 7, **options}, stride=stride, group_channels=8, kernel_generation=phi)
    x = torch.randn(2, 32, 9, 11, requires_grad=True)
    out = layer(x)
    size = [-(-(length - (4 if 'padding' in options else 0)) // stride) for length in (9, 11)]
    assert out.shape == (2, 32, *size)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize(
    ('build', 'text'),
    [
        (lambda: LocalAttention(8, groups=3), 'groups must be a divisor of the 8 channels'),
        (lambda: LocalAttention(8, border='wrap'), "border must be one of .* but is 'wrap'"),
        (lambda: LocalAttention(8, groups=8), 'an even number of channels for each head'),
        (lambda: LocalAttention(8, 4), "padding None means 'same'"),
        (lambda: LocalAttention(8, groups=2, border='reflect')(torch.zeros(1, 8, 3, 9)), 'at least 4 pixels high'),
        (
            lambda: Involution(32, kernel_generation=partial(LocalRelationKernelGeneration, similarity='cosine')),
            'similarity must be one of',
        ),
        (
            lambda: Involution(
                32, kernel_generation=partial(SelfAttentionKernelGeneration, content=False, position=False)
            ),
            'content or position must be True',
        ),
        (lambda: Involution(32, kernel_generation=partial(PairwiseKernelGeneration, border='mask')), "be 'reflect'"),
        (
            lambda: Involution(32, kernel_generation=partial(NeighbourhoodKernelGeneration, neighbourhood=2)),
            'neighbourhood must be odd',
        ),
    ],
)
def test_errors_name_the_argument(build, text):
    with pytest.raises(ValueError, match=text):
        build()


@pytest.mark.parametrize(
    'build', [LocalAttention, pytest.param(partial(LocalAttention, border='mask'), marks=pytest.mark.full)]
)
def test_onnx_has_the_same_numbers(build, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    layer = build(8, 3, 2, groups=2).float().eval()
    x = torch.randn(2, 8, 7, 6, dtype=torch.float32)
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    torch.onnx.export(layer, (x,), tmp_path / 'layer.onnx', dynamo=True, dynamic_shapes=(dynamic,), verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / 'layer.onnx')
    for size in ((2, 8, 7, 6), (1, 8, 10, 13)):
        x = torch.randn(size, dtype=torch.float32)
        (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert torch.allclose(torch.from_numpy(out), layer(x), atol=1e-5)
