"""Every config builds. Other models build, train and predict with RedNet instead of their ResNet-50."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers import ROOT, mark_full, registry
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import PixelData
from zoo import cap_proposals

CONFIGS = ROOT / 'configs'


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('mm*/*.py')), ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_config_builds(path):
    config = Config.fromfile(path)
    assert config.runner_type == 'mmrednet.Runner'
    with torch.device('meta'):
        model = registry(path.parent.name).build(config.model)
    assert config.model.backbone.type == f'mmrednet.{type(model.backbone).__name__}'
    # Dense configs start from ImageNet weights, except those of the demo, which need no network.
    if path.parent.name != 'mmpretrain' and not path.stem.endswith('_demo'):
        assert config.model.backbone.init_cfg.checkpoint == 'mmrednet://rednet50'
    else:
        assert 'init_cfg' not in config.model.backbone and model.backbone.frozen_stages == -1
    assert config.model.get('pretrained') is None


def from_scratch(path):
    """Returns a config that needs no ImageNet weights."""
    config = Config.fromfile(path)
    config.model.backbone.update(init_cfg=None, frozen_stages=-1, norm_eval=False)
    cap_proposals(config.model)
    return config


def toolbox_config(name):
    """Returns a toolbox's own config with RedNet-26 as its backbone, and nothing else changed."""
    config = Config.fromstring(f'_base_ = {name!r}', '.py')
    kept = ('out_indices', 'strides', 'dilations', 'contract_dilation', 'num_stages', 'norm_eval', 'frozen_stages')
    backbone = {key: value for key, value in config.model.backbone.items() if key in kept}
    config.model.backbone = dict(type='mmrednet.RedNet', depth=26, **backbone)
    config.model.pop('pretrained', None)
    cap_proposals(config.model)
    return config


def check_gradients(model, losses):
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert loss.isfinite()
    frozen = ('stem.', *(f'layer{i}.' for i in range(1, 5)))[: model.backbone.frozen_stages + 1]
    for name, parameter in model.backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name


def run_detector(model):
    from mmdet.testing import demo_mm_inputs

    model.init_weights()
    inputs = demo_mm_inputs(2, [[3, 64, 97], [3, 97, 64]], num_classes=80, with_mask=True)
    check_gradients(model, model(**model.data_preprocessor(inputs, True), mode='loss'))
    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(inputs, False), mode='predict')
    assert [type(result.pred_instances).__name__ for result in results] == ['InstanceData'] * 2


def run_segmentor(model, size=(65, 65)):
    from mmseg.structures import SegDataSample

    model = revert_sync_batchnorm(model)
    model.init_weights()
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 19, (1, *size)))
        samples.append(sample)
    model.data_preprocessor.size = size
    data = dict(inputs=[torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(2)], data_samples=samples)
    check_gradients(model, model(**model.data_preprocessor(data, True), mode='loss'))
    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(data, False), mode='predict')
    assert all(result.pred_sem_seg.data.shape == (1, *size) for result in results)


def run_classifier(model, labels):
    from mmpretrain.structures import DataSample

    model.init_weights()
    samples = [DataSample().set_gt_label(label) for label in labels]
    images = torch.rand(2, 3, 65, 97)
    check_gradients(model, model(images, samples, mode='loss'))
    model.eval()
    with torch.no_grad():
        assert all(result.pred_score.isfinite().all() for result in model(images, samples, mode='predict'))


@pytest.mark.parametrize('name', ('retinanet_rednet50_invfpn', 'mask_rcnn_rednet50_invfpn_invhead'))
def test_detection_config_trains_and_predicts(name):
    config = from_scratch(CONFIGS / 'mmdet' / f'{name}.py')
    run_detector(registry('mmdet').build(config.model))


@pytest.mark.parametrize('name', ('semantic_fpn_rednet50_invfpn', 'upernet_rednet50_invfpn'))
def test_segmentation_config_trains_and_predicts(name):
    config = from_scratch(CONFIGS / 'mmseg' / f'{name}.py')
    run_segmentor(registry('mmseg').build(config.model))


# Small networks of the family with outputs of 64, 128, 256 and 512 channels.
FAMILY = {
    'StandAloneResNet': dict(depth=26, stem_channels=16, base_channels=16),
    'LRNet': dict(depth=26, stem_channels=16, base_channels=20, out_channels=64),
    'AxialResNet': dict(depth=26, width=0.25),
}


def with_network_of_the_family(config, network):
    """Returns the model of a config with a small backbone of the family, whose first stage is frozen."""
    model = Config.fromfile(CONFIGS / config).model
    arguments = dict(out_indices=(0, 1, 2, 3), frozen_stages=1)
    model.backbone = dict(type=f'mmrednet.{network}', **arguments, **FAMILY[network])
    model.neck.in_channels = [64, 128, 256, 512]
    return model


# The short suite has one network with Mask R-CNN and all with Semantic FPN.
@pytest.mark.parametrize(
    'network',
    [name if name == 'StandAloneResNet' else pytest.param(name, marks=pytest.mark.full) for name in FAMILY],
)
def test_mask_rcnn_trains_and_predicts_with_other_networks_of_the_family(network):
    run_detector(registry('mmdet').build(with_network_of_the_family('mmdet/mask_rcnn_rednet50_fpn.py', network)))


@pytest.mark.parametrize('network', FAMILY)
def test_semantic_fpn_trains_and_predicts_with_other_networks_of_the_family(network):
    run_segmentor(registry('mmseg').build(with_network_of_the_family('mmseg/semantic_fpn_rednet50_fpn.py', network)))


def test_classification_config_trains_and_predicts():
    config = Config.fromfile(CONFIGS / 'mmpretrain' / 'rednet26.py')
    run_classifier(registry('mmpretrain').build(config.model), (3, 999))


@pytest.mark.parametrize(
    'name',
    [
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
        'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        'atss/atss_r50_fpn_1x_coco.py',
        'yolof/yolof_r50-c5_8xb8-1x_coco.py',
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        'pafpn/faster-rcnn_r50_pafpn_1x_coco.py',
    ],
)
def test_drops_into_mmdet(name):
    run_detector(registry('mmdet').build(toolbox_config(f'mmdet::{name}').model))


@pytest.mark.parametrize(
    'name',
    [
        'pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
        'deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-769x769.py',
        'ccnet/ccnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    ],
)
def test_drops_into_mmseg(name):
    """With output stride 8 and, as 769x769 crops, a size that it does not divide."""
    model = registry('mmseg').build(toolbox_config(f'mmseg::{name}').model)
    assert model.backbone(torch.rand(1, 3, 65, 65))[-1].shape[2:] == (9, 9)
    run_segmentor(model)


@pytest.mark.parametrize(
    ('name', 'labels'),
    [
        ('resnet/resnet50_8xb32_in1k.py', (3, 999)),
        ('csra/resnet101-csra_1xb16_voc07-448px.py', ([0, 5], [19])),
    ],
)
def test_drops_into_mmpretrain(name, labels):
    """With one label an image, and with several."""
    run_classifier(registry('mmpretrain').build(toolbox_config(f'mmpretrain::{name}').model), labels)


CONV_CFG = dict(type='mmrednet.Involution', involution_kernel_size=7)


@pytest.mark.parametrize(
    ('scope', 'head', 'shapes'),
    [
        ('mmdet', dict(type='FPN', in_channels=[16, 32], out_channels=32, num_outs=3), [(16, 9, 12), (32, 5, 6)]),
        ('mmdet', dict(type='FCNMaskHead', in_channels=32, conv_out_channels=16, num_classes=3), (32, 14, 14)),
        ('mmdet', dict(type='RetinaHead', num_classes=3, in_channels=32, feat_channels=16), [(32, 9, 12)]),
        ('mmseg', dict(type='FCNHead', num_classes=3, in_channels=32, channels=16), [(32, 9, 12)]),
    ],
    ids=lambda value: value.get('type') if isinstance(value, dict) else None,
)
def test_conv_cfg_puts_involutions_into_a_module(scope, head, shapes):
    from mmrednet.layers import Involution

    module = registry(scope).build(dict(head, conv_cfg=CONV_CFG))
    module.init_weights()
    layers = [layer for layer in module.modules() if isinstance(layer, Involution)]
    assert layers and all(layer.kernel_size == (7, 7) for layer in layers)
    inputs = torch.rand(2, *shapes) if isinstance(shapes, tuple) else [torch.rand(2, *shape) for shape in shapes]
    plain = registry(scope).build(head)
    outs, expected = (torch.utils._pytree.tree_leaves(m(inputs)) for m in (module, plain))
    assert [out.shape for out in outs] == [out.shape for out in expected]
    sum(out.sum() for out in outs).backward()
    assert all(parameter.grad is not None for layer in layers for parameter in layer.parameters())


# Families of the zoo. The first config with a ResNet-50 of each family is tested.
FAMILIES = {
    'mmdet': (
        *('autoassign', 'cascade_rpn', 'conditional_detr', 'dab_detr', 'ddod', 'detr', 'dino', 'double_heads'),
        *('dynamic_rcnn', 'foveabox', 'free_anchor', 'fsaf', 'gfl', 'grid_rcnn', 'guided_anchoring', 'htc'),
        *('libra_rcnn', 'mask2former', 'paa', 'panoptic_fpn', 'point_rend', 'queryinst', 'reppoints', 'sabl'),
        *('solo', 'sparse_rcnn', 'tood', 'yolact'),
    ),
    'mmseg': (
        'ann',
        'apcnet',
        'danet',
        'dmnet',
        'encnet',
        'fastfcn',
        'gcnet',
        'isanet',
        'knet',
        'nonlocal_net',
        'psanet',
    ),
}


CASES = {f'{scope}-{family}': (scope, family) for scope in FAMILIES for family in FAMILIES[scope]}
QUICK = ('mmdet-detr', 'mmdet-gfl', 'mmdet-guided_anchoring', 'mmdet-panoptic_fpn', 'mmseg-ann', 'mmseg-fastfcn')


@pytest.mark.parametrize('case', mark_full(CASES, QUICK))
def test_has_the_features_that_the_zoo_expects(case):
    """Models build, and RedNet's features have the shapes of the ResNet's that it replaces."""
    scope, family = case
    folder = Path(import_module(scope).__file__).parent / '.mim' / 'configs'
    for path in sorted((folder / family).glob('*.py')):
        backbone = Config.fromfile(path).model.backbone
        if backbone.type in ('ResNet', 'ResNetV1c') and backbone.depth == 50:
            break
    else:
        raise LookupError(f'no config with a ResNet-50 in {family}')
    config = toolbox_config(f'{scope}::{path.relative_to(folder)}')
    with torch.device('meta'):
        model, resnet = registry(scope).build(config.model), registry(scope).build(backbone)
        images = torch.empty(1, 3, 129, 97)
        assert [out.shape for out in model.backbone(images)] == [out.shape for out in resnet(images)]
