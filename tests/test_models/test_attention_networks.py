"""SAN, AA-ResNet and Axial ResNet: counts of the papers and released checkpoints."""

from math import prod

import pytest
import torch
import torch.nn.functional as F
from helpers import registry
from mmcv.cnn import fuse_conv_bn
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmrednet.checkpoint import load
from mmrednet.layers import AxialAttention
from mmrednet.models.aa_resnet import AAResNet
from mmrednet.models.axial_resnet import AxialResNet
from mmrednet.models.san import SAN

BLOCKS = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}
# Names and arguments, parameters with a classifier of 1000 classes, and multiply-adds in units of 10^9.
COUNTS = [
    (SAN, dict(depth=10, attention='pairwise'), 10531848, 2.044),
    (SAN, dict(depth=15, attention='pairwise'), 14065436, 2.859),
    (SAN, dict(depth=19, attention='pairwise'), 17596156, 3.636),
    (SAN, dict(depth=10, attention='patchwise'), 11841124, 1.791),
    (SAN, dict(depth=15, attention='patchwise'), 16181310, 2.478),
    (SAN, dict(depth=19, attention='patchwise'), 20518470, 3.130),
    # Of three roundings that give the paper's 25.8, 45.4 and 61.6 M: 16, 24 and 48 value channels, with biases.
    (AAResNet, dict(depth=50), 25785488, 4.19),
    (AAResNet, dict(depth=101), 45373024, 8.16),
    (AAResNet, dict(depth=152), 61577488, 12.08),
    (AAResNet, dict(depth=50, released=True), 25118606, None),
    (AAResNet, dict(depth=101, released=True), 43714634, None),
    (AAResNet, dict(depth=152, released=True), 59016862, None),
    # The authors' code has tables of 509 entries. The paper's parameters fit tables of 467 to 479.
    (AxialResNet, dict(width=0.5), 11466912 + 40240 + 1025000, 3.084),
    (AxialResNet, dict(width=0.75), 26619664, 6.610),
    (AxialResNet, dict(width=1.0), 45922408, 11.460),
    (AxialResNet, dict(width=0.5, stem='conv'), 11466912 + 1025000, 2.715),
    (AxialResNet, dict(width=0.75, stem='conv'), 26528568, 5.575),
    (AxialResNet, dict(width=1.0, stem='conv'), 43714048 + 2049000, 9.475),
    (AxialResNet, dict(depth=26, width=0.5, stem='conv', released=True), 5944936, None),
    (AxialResNet, dict(depth=50, width=0.5, stem='conv', released=True), 11586216, None),
    (AxialResNet, dict(depth=50, width=0.75, stem='conv', released=True), 25179400, None),
    (AxialResNet, dict(depth=50, width=1.0, stem='conv', released=True), 43973480, None),
]


@pytest.mark.parametrize(('network', 'arguments', 'params', 'billions'), COUNTS, ids=str)
def test_parameters_and_multiply_adds(network, arguments, params, billions):
    with torch.device('meta'):
        backbone = network(**arguments).eval()
        channels = int(2048 * arguments.get('width', 1))
        model = nn.Sequential(backbone, nn.Linear(channels, 1000))
        assert sum(value.numel() for value in model.parameters()) == params
        if billions is not None:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                model[1](backbone(torch.empty(1, 3, 224, 224))[0].mean((2, 3)))
            # It counts a multiply-add as two.
            counted = counter.get_total_flops() / 2
            if network is AAResNet:
                # The paper multiplies q with all 2 L - 1 entries of a table. We do it with the L that a pixel needs.
                blocks = backbone.arch_settings[backbone.depth]
                counted += 320 * ((blocks[1] + blocks[2]) * 14**2 * 13 + blocks[3] * 7**2 * 6)
            assert counted / 1e9 == pytest.approx(billions, abs=0.0006 if network is SAN else 0.012)


# The released layouts. Each dict maps the name of a parameter to its shape.


def norm(name, channels):
    parts = ('weight', 'bias', 'running_mean', 'running_var')
    return {f'{name}.num_batches_tracked': (), **{f'{name}.{part}': (channels,) for part in parts}}


def conv(name, *shape, bias=False):
    return {f'{name}.weight': shape, **({f'{name}.bias': shape[:1]} if bias else {})}


def san_layout(depth, attention):
    shapes, channels = {**conv('conv_in', 64, 3, 1, 1), **norm('bn_in', 64), **conv('fc', 1000, 2048, bias=True)}, 64
    for s, (count, planes) in enumerate(zip(BLOCKS[depth], (64, 256, 512, 1024, 2048), strict=True)):
        rel, mid, groups, taps = planes // 16, planes // 4, planes // 32, 9 if s == 0 else 49
        shapes |= conv(f'conv{s}', planes, channels, 1, 1) | norm(f'bn{s}', planes)
        channels = planes
        pairwise = attention == 'pairwise'
        seen, hidden, last = (rel + 2, rel, groups) if pairwise else (rel * (taps + 1), groups, taps * groups)
        for block in (f'layer{s}.{b}' for b in range(count)):
            shapes |= norm(f'{block}.bn1', planes) | norm(f'{block}.bn2', mid)
            shapes |= conv(f'{block}.conv', planes, mid, 1, 1, bias=True)
            shapes |= conv(f'{block}.sam.conv1', rel, planes, 1, 1, bias=True)
            shapes |= conv(f'{block}.sam.conv2', rel, planes, 1, 1, bias=True)
            shapes |= conv(f'{block}.sam.conv3', mid, planes, 1, 1, bias=True)
            shapes |= norm(f'{block}.sam.conv_w.0', seen) | conv(f'{block}.sam.conv_w.2', hidden, seen, 1, 1)
            shapes |= norm(f'{block}.sam.conv_w.3', hidden)
            shapes |= conv(f'{block}.sam.conv_w.5', last, hidden, 1, 1, bias=True)
            shapes |= conv(f'{block}.sam.conv_p', 2, 2, 1, 1, bias=True) if pairwise else {}
    return shapes


def stem_and_head(stem, channels):
    return conv('conv1', stem, 3, 7, 7) | norm('bn1', stem) | conv('fc', 1000, channels, bias=True)


def shortcut(block, out, channels):
    return conv(f'{block}.downsample.0', out, channels, 1, 1) | norm(f'{block}.downsample.1', out)


def aa_layout():
    shapes, channels = stem_and_head(64, 2048), 64
    for s, count in enumerate((3, 4, 6, 3)):
        mid, out = 64 << s, 256 << s
        for b in range(count):
            block = f'layer{s + 1}.{b}'
            shapes |= conv(f'{block}.conv1', mid, channels, 1, 1) | norm(f'{block}.bn1', mid)
            shapes |= norm(f'{block}.bn2', mid) | conv(f'{block}.conv3', out, mid, 1, 1) | norm(f'{block}.bn3', out)
            if s == 0:
                shapes |= conv(f'{block}.conv2', 64, 64, 3, 3)
            else:
                keys, values, table = ((24, 16, 27), (48, 24, 27), (104, 48, 13))[s - 1]
                shapes |= conv(f'{block}.conv2.conv_out', mid - values, mid, 3, 3, bias=True)
                shapes |= conv(f'{block}.conv2.conv_kqv', 2 * keys + values, mid, 1, 1, bias=True)
                shapes |= conv(f'{block}.conv2.attn_out', values, values, 1, 1, bias=True)
                shapes |= {f'{block}.conv2.key_rel_{axis}': (table, keys // 8) for axis in 'wh'}
            shapes |= shortcut(block, out, channels) if b == 0 else {}
            channels = out
    return shapes


def axial_layout():
    shapes, channels = stem_and_head(32, 1024), 32
    for s, count in enumerate((1, 2, 4, 1)):
        mid, out = 64 << s, 128 << s
        for b in range(count):
            block, size = f'layer{s + 1}.{b}', 56 >> (s if b or s == 0 else s - 1)
            shapes |= conv(f'{block}.conv_down', mid, channels, 1, 1) | norm(f'{block}.bn1', mid)
            shapes |= conv(f'{block}.conv_up', out, mid, 1, 1) | norm(f'{block}.bn2', out)
            for layer in (f'{block}.hight_block', f'{block}.width_block'):
                shapes |= conv(f'{layer}.qkv_transform', 2 * mid, mid, 1) | norm(f'{layer}.bn_qkv', 2 * mid)
                shapes |= norm(f'{layer}.bn_similarity', 24) | norm(f'{layer}.bn_output', 2 * mid)
                shapes |= {f'{layer}.relative': (mid // 4, 2 * size - 1), f'{layer}.flatten_index': (size * size,)}
            shapes |= shortcut(block, out, channels) if b == 0 else {}
            channels = out
    return shapes


# The same networks in few lines, on the weights of the released layouts.


def convolve(w, name, x, **options):
    return F.conv2d(x, w[f'{name}.weight'], w.get(f'{name}.bias'), **options)


def normalise(w, name, x):
    return F.batch_norm(x, *(w[f'{name}.{part}'] for part in ('running_mean', 'running_var', 'weight', 'bias')))


def windows(x, size):
    return F.unfold(F.pad(x, [size // 2] * 4, mode='reflect'), size).unflatten(1, (x.shape[1], size * size))


def run_sam(w, name, x, size, pairwise):
    groups = w[f'{name}.conv3.weight'].shape[0] // 8
    centre, neighbour, value = (convolve(w, f'{name}.conv{i}', x) for i in (1, 2, 3))
    centre, neighbour, value = centre.flatten(2)[:, :, None], windows(neighbour, size), windows(value, size)
    if pairwise:
        y, z = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=x.dtype) for n in x.shape[2:]), indexing='ij')
        place = convolve(w, f'{name}.conv_p', torch.stack([z, y])[None])
        place = (place.flatten(2)[:, :, None] - windows(place, size)).expand(len(x), -1, -1, -1)
        seen = torch.cat([centre - neighbour, place], 1)
    else:
        seen = torch.cat([centre.squeeze(2), neighbour.flatten(1, 2)], 1)[:, :, None]
    hidden = convolve(w, f'{name}.conv_w.2', normalise(w, f'{name}.conv_w.0', seen).relu())
    weights = convolve(w, f'{name}.conv_w.5', normalise(w, f'{name}.conv_w.3', hidden).relu())
    weights = weights.softmax(2) if pairwise else weights.squeeze(2).unflatten(1, (groups, size * size))
    channels = [(weights[:, c % groups] * value[:, c]).sum(1) for c in range(value.shape[1])]
    return torch.stack(channels, 1).unflatten(2, x.shape[2:])


def run_san(w, x, blocks, pairwise):
    x = normalise(w, 'bn_in', convolve(w, 'conv_in', x)).relu()
    for s, count in enumerate(blocks):
        x = convolve(w, f'conv{s}', F.max_pool2d(x, 2))
        for block in (f'layer{s}.{b}' for b in range(count)):
            out = run_sam(w, f'{block}.sam', normalise(w, f'{block}.bn1', x).relu(), 3 if s == 0 else 7, pairwise)
            x = x + convolve(w, f'{block}.conv', normalise(w, f'{block}.bn2', out).relu())
        x = normalise(w, f'bn{s}', x).relu()
    return x


def run_stages(w, x, counts, residual):
    x = normalise(w, 'bn1', convolve(w, 'conv1', x, stride=2, padding=3)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for s, count in enumerate(counts, 1):
        for b in range(count):
            name, stride = f'layer{s}.{b}', 2 if s > 1 and b == 0 else 1
            identity = x
            if b == 0:
                identity = normalise(w, f'{name}.downsample.1', convolve(w, f'{name}.downsample.0', x, stride=stride))
            x = (residual(w, name, x, stride) + identity).relu()
    return x


def run_augmented(w, name, x, stride):
    kqv = convolve(w, f'{name}.conv_kqv', x, stride=stride)
    values = w[f'{name}.attn_out.weight'].shape[0]
    keys, (batch, _, side, _) = (kqv.shape[1] - values) // 2, kqv.shape
    k, q, v = (part.reshape(batch, 8, -1, side, side) for part in kqv.split([keys, keys, values], 1))
    q = q * (keys / 8) ** -0.5
    at = torch.arange(side)
    distance = at - at[:, None] + side - 1
    logits = torch.einsum('nhcij,nhckl->nhijkl', q, k)
    logits += torch.einsum('nhcij,ikc->nhijk', q, w[f'{name}.key_rel_h'][distance])[..., None]
    logits += torch.einsum('nhcij,jlc->nhijl', q, w[f'{name}.key_rel_w'][distance])[..., None, :]
    weights = logits.flatten(4).softmax(4)
    out = torch.einsum('nhijp,nhcp->nhijc', weights, v.flatten(3)).reshape(batch, values, side, side)
    convolved = convolve(w, f'{name}.conv_out', x, stride=stride, padding=1)
    return torch.cat([convolved, convolve(w, f'{name}.attn_out', out)], 1)


def aa_residual(w, name, x, stride):
    x = normalise(w, f'{name}.bn1', convolve(w, f'{name}.conv1', x)).relu()
    if name.startswith('layer1'):
        x = convolve(w, f'{name}.conv2', x, padding=1)
    elif name.startswith('layer2'):
        x = run_augmented(w, f'{name}.conv2', F.avg_pool2d(x, 3, 2, 1), stride)
        x = F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)
    else:
        x = run_augmented(w, f'{name}.conv2', x, stride)
    x = normalise(w, f'{name}.bn2', x).relu()
    return normalise(w, f'{name}.bn3', convolve(w, f'{name}.conv3', x))


def run_axis(w, name, x):
    """Attends along the last axis."""
    lines = x.transpose(1, 2).flatten(0, 1)
    qkv = normalise(w, f'{name}.bn_qkv', F.conv1d(lines, w[f'{name}.qkv_transform.weight']))
    depth, at = x.shape[1] // 8, torch.arange(x.shape[3])
    parts = [depth // 2, depth // 2, depth]
    q, k, v = qkv.unflatten(1, (8, -1)).split(parts, 2)
    tables = w[f'{name}.relative'][:, at[:, None] - at + x.shape[3] - 1]
    of_query, of_key, of_value = tables.split(parts)
    logits = [
        torch.einsum('bhco,bhcp->bhop', q, k),
        torch.einsum('bhco,cop->bhop', q, of_query),
        torch.einsum('bhcp,cpo->bhop', k, of_key),
    ]
    weights = sum(normalise(w, f'{name}.bn_similarity', torch.cat(logits, 1)).chunk(3, 1)).softmax(3)
    content = torch.einsum('bhop,bhcp->bhco', weights, v)
    position = torch.einsum('bhop,cop->bhco', weights, of_value)
    out = normalise(w, f'{name}.bn_output', torch.stack([content, position], 3).flatten(1, 3))
    return (out[:, 0::2] + out[:, 1::2]).unflatten(0, (len(x), -1)).transpose(1, 2)


def axial_residual(w, name, x, stride):
    x = normalise(w, f'{name}.bn1', convolve(w, f'{name}.conv_down', x)).relu()
    x = run_axis(w, f'{name}.hight_block', x.transpose(2, 3)).transpose(2, 3)
    x = F.avg_pool2d(run_axis(w, f'{name}.width_block', x), stride)
    return normalise(w, f'{name}.bn2', convolve(w, f'{name}.conv_up', x.relu()))


RELEASED = {
    'san10_pairwise': (
        lambda: san_layout(10, 'pairwise'),
        dict(type='mmrednet.SAN', depth=10),
        lambda w, x: run_san(w, x[..., :128, :160], BLOCKS[10], True),
    ),
    'san10_patchwise': (
        lambda: san_layout(10, 'patchwise'),
        dict(type='mmrednet.SAN', depth=10, attention='patchwise'),
        lambda w, x: run_san(w, x[..., :128, :160], BLOCKS[10], False),
    ),
    'aa_resnet50': (
        aa_layout,
        dict(type='mmrednet.AAResNet', depth=50, released=True),
        lambda w, x: run_stages(w, x, (3, 4, 6, 3), aa_residual),
    ),
    'axial26s': (
        axial_layout,
        dict(type='mmrednet.AxialResNet', depth=26, stem='conv', released=True),
        lambda w, x: run_stages(w, x, (1, 2, 4, 1), axial_residual),
    ),
}


def draw(shapes):
    """Returns random parameters with the sizes that keep activations finite."""
    torch.manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        if name.endswith(('num_batches_tracked', 'flatten_index')):
            weights[name] = torch.zeros(shape, dtype=torch.long)
        elif name.endswith('running_var') or len(shape) == 1 and name.endswith('.weight'):
            weights[name] = torch.rand(shape) + 0.5
        else:
            weights[name] = torch.randn(shape) * (0.1 if len(shape) == 1 else prod(shape[1:]) ** -0.5)
    return weights


@pytest.mark.parametrize('name', RELEASED)
def test_released_checkpoints(name, tmp_path):
    layout, backbone, run = RELEASED[name]
    weights, path = draw(layout()), str(tmp_path / 'model_best.pth')
    released = {f'module.{key}': value for key, value in weights.items()}
    torch.save(dict(epoch=100, state_dict=released, optimizer={}, scheduler={}, top1_val=75.0), path)
    # As load_from in a classifier, and as init_cfg of a backbone.
    head = dict(type='LinearClsHead', num_classes=1000, in_channels=weights['fc.weight'].shape[1])
    neck = dict(type='GlobalAveragePooling')
    models = registry('mmpretrain')
    classifier = models.build(dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head))
    classifier.load_state_dict(load(path)['state_dict'])
    alone = models.build(dict(backbone, init_cfg=dict(checkpoint=path)))
    alone.init_weights()
    state = alone.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in classifier.backbone.state_dict().items())
    w, x = ({k: v.double() for k, v in weights.items()}, torch.randn(1, 3, 224, 224, dtype=torch.double))
    features = run(w, x)
    x = x[..., :128, :160] if 'san' in name else x
    expected = F.linear(features.mean((2, 3)), w['fc.weight'], w['fc.bias'])
    with torch.no_grad():
        torch.testing.assert_close(classifier.double().eval()(x), expected)


@pytest.mark.parametrize('attention', ['pairwise', 'patchwise'])
@pytest.mark.parametrize('depth', BLOCKS)
def test_names_and_shapes_of_san_are_the_released_ones(depth, attention):
    layout = san_layout(depth, attention)
    # The numbers of tensors in the authors' networks.
    counts = {'pairwise': {10: 368, 15: 533, 19: 665}, 'patchwise': {10: 348, 15: 503, 19: 627}}
    assert len(layout) == counts[attention][depth]
    with torch.device('meta'):
        state = SAN(depth, attention).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        key: shape for key, shape in layout.items() if not key.startswith('fc.')
    }


def test_numbers_of_tensors_in_the_other_released_checkpoints():
    assert len(aa_layout()) == 411
    assert len(axial_layout()) == 416


NETWORKS = {
    'pairwise': lambda **options: SAN(10, **options),
    'patchwise': lambda **options: SAN(10, 'patchwise', **options),
    'augmented': lambda **options: AAResNet(50, **options),
    'axial': lambda **options: AxialResNet(26, **options),
    'axial, convolution stem': lambda **options: AxialResNet(26, stem='conv', **options),
    'axial, released': lambda **options: AxialResNet(26, stem='conv', released=True, **options),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_outputs_of_odd_sizes(name):
    model = NETWORKS[name](out_indices=(0, 1, 2, 3)).eval()
    height, width = (131, 163) if isinstance(model, SAN) else (67, 97)
    with torch.no_grad():
        outs = model(torch.rand(2, 3, height, width))
    for i, out in enumerate(outs):
        step, channels = 4 * 2**i, (128 if isinstance(model, AxialResNet) else 256) * 2**i
        size = (height // step, width // step)
        if not isinstance(model, SAN):
            size = (-(-height // step), -(-width // step))
        assert out.shape == (2, channels, *size)
        assert out.isfinite().all()


@pytest.mark.parametrize('name', ['pairwise', 'augmented', 'axial'])
def test_frozen_stages_and_norm_eval(name):
    model = NETWORKS[name](frozen_stages=1, norm_eval=True).train()
    first = {'pairwise': 'conv_in', 'augmented': 'conv1', 'axial': 'stem'}[name]
    assert not any(p.requires_grad for n, p in model.named_parameters() if n.startswith((first, 'layer1.')))
    assert all(p.requires_grad for n, p in model.named_parameters() if n.startswith('layer2.'))
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d))


@pytest.mark.parametrize('name', ['pairwise', 'axial'])
def test_recomputed_activations_have_the_same_gradients(name):
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = NETWORKS[name](with_cp=with_cp).train()
        model.init_weights()
        (out,) = model(torch.rand(2, 3, 128, 128))
        out.square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_residuals_of_axial_resnet_start_at_zero():
    model = AxialResNet(26, stem='conv')
    model.init_weights()
    assert all(not block.bn2.weight.any() for stage in (model.layer1, model.layer4) for block in stage)
    # The authors' initialisation of the layers stays.
    layer = next(m for m in model.modules() if isinstance(m, AxialAttention))
    assert layer.qkv_transform.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)


@pytest.mark.parametrize(
    ('build', 'text'),
    [
        (lambda: SAN(11), r'depth must be one of \(10, 15, 19\), but is 11'),
        (lambda: SAN(10, 'both'), r"attention must be one of \('pairwise', 'patchwise'\), but is 'both'"),
        (lambda: SAN(10, kernel_sizes=(3, 7, 7, 7)), r'kernel_sizes must be 5 odd numbers, but is \(3, 7, 7, 7\)'),
        (lambda: SAN(10)(torch.zeros(1, 3, 96, 200)), 'at least 128x128 pixels.* these have 96x200: use larger images'),
        (lambda: AAResNet(26), r'depth must be one of \(50, 101, 152\), but is 26'),
        (lambda: AxialResNet(width=0.3), 'width must be a positive multiple of 0.25 .* but is 0.3'),
        (lambda: AxialResNet(stem='involution'), "stem must be one of .* but is 'involution'"),
        (lambda: AxialResNet(released=True), "released=True needs stem='conv'"),
    ],
)
def test_errors_name_the_argument(build, text):
    with pytest.raises(ValueError, match=text):
        build()


@pytest.mark.parametrize('network', [SAN, AAResNet, AxialResNet])
def test_unknown_arguments(network):
    with pytest.raises(TypeError, match=f"{network.__name__} has no argument 'style'"):
        network(10 if network is SAN else 50, style='pytorch')


@pytest.mark.parametrize('argument', [dict(strides=(1, 2, 1, 1)), dict(dilations=(1, 1, 2, 4)), dict(multi_grid=(1,))])
def test_axial_resnet_refuses_arguments_that_it_would_ignore(argument):
    with pytest.raises(TypeError, match=f"AxialResNet has no argument '{next(iter(argument))}'"):
        AxialResNet(26, **argument)


def test_san_has_no_norm_layer_at_the_end_of_a_block():
    with pytest.raises(TypeError, match="SAN has no argument 'zero_init_residual'"):
        SAN(10, zero_init_residual=True, frozen_stages=1)


@pytest.mark.parametrize('attention', ['pairwise', 'patchwise'])
def test_san_for_small_images_with_folded_norms(attention):
    """mmcv's function must fold no norm layer of a stage: the stage's blocks are before it."""
    torch.manual_seed(0)
    model, images = SAN(10, attention, kernel_sizes=(3, 7, 7, 7, 3)), torch.randn(2, 3, 64, 64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # takes the statistics of the next batch
            nn.init.uniform_(module.bias)
    with torch.no_grad():
        model.train()(images)
        expected = model.eval()(images)[0]
        folded = fuse_conv_bn(model)(images)[0]
    assert expected.shape == (2, 2048, 2, 2)
    torch.testing.assert_close(folded, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
