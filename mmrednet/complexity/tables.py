"""The rows of the paper's Tables 1, 3, 4, 5 and 6 and of Figure 2, with the parameters and FLOPs that we count."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ..configs import CONFIGS
from ..toolboxes import read_config
from .flops import count_flops


# Compared and hashed by identity, since a dict has no hash.
@dataclass(frozen=True, eq=False)
class Row:
    """A row of the paper."""

    table: str  # '1', '3', '4', '5', '6a', '6b' or '6c', or 'F2' for a network of Figure 2 that is not in Table 1
    model: str
    params: float  # that the paper prints, in millions
    flops: float  # that the paper prints, in units of 10^9
    config: str  # a path in configs/, or a toolbox's config as in `_base_`
    options: Mapping = field(default_factory=dict)  # entries that override the config
    accuracy: float | None = None  # the paper's top-1 on ImageNet in percent (Table 1 and Figure 2)
    note: str = ''  # why our numbers differ from the paper's
    curve: str = ''  # its curve in Figure 2


class Complexity(NamedTuple):
    """The number of a model's parameters, and its FLOPs for an image as :func:`count_flops` counts them."""

    params: int
    flops: int


_TABLE_1 = (
    # depth, parameters, FLOPs and accuracy of ResNet and RedNet
    (26, (13.7, 2.4, 73.6), (9.2, 1.7, 75.9)),
    (38, (19.6, 3.2, 76.0), (12.4, 2.2, 77.6)),
    (50, (25.6, 4.1, 76.8), (15.5, 2.7, 78.4)),
    (101, (44.6, 7.9, 78.5), (25.6, 4.7, 79.1)),
    (152, (60.2, 11.6, 79.3), (34.0, 6.8, 79.3)),
)
_SASA_NOTE = (
    "The paper's figures fit 2.35, 2.97 and 3.59 G, with q . r for each tap and a value for each matrix of the stem. "
    'We need fewer multiply-adds for the same result: q . r is a term for the row plus a term for the column of a tap, '
    'and the stem mixes its matrices first.'
)
_SASA_38_NOTE = 'We count 14.17 M. The paper seems to cut off the second decimal.'
_LRNET_NOTE = (
    'LR-Net is not reproduced. Its authors published no network, and no width fits all depths. '
    'base_channels=101 at depth 26 and 103 at depth 101 fit the parameters.'
)
_SAN_NOTE = (
    "The paper's FLOPs seem to contain one for each difference of features, 2.155 G for SAN10. We do not count it."
)
_AXIAL_NOTE = (
    "The tables of relative positions have 509 entries, as in the authors' code. Tables of 467 to 479 entries fit the "
    "paper's parameters."
)
# Other networks of Figure 2: name, config, parameters, FLOPs and accuracy in the paper, and a note.
_CURVES = {
    ('1', 'Stand-Alone ResNet'): (
        ('Stand-Alone ResNet-26', 'sasa26', 10.3, 2.4, 74.8, _SASA_NOTE),
        ('Stand-Alone ResNet-38', 'sasa38', 14.1, 3.0, 76.9, f'{_SASA_38_NOTE} {_SASA_NOTE}'),
        ('Stand-Alone ResNet-50', 'sasa50', 18.0, 3.6, 77.6, _SASA_NOTE),
    ),
    ('1', 'LR-Net'): (
        ('LR-Net-26', 'lrnet26', 14.7, 2.6, 75.7, _LRNET_NOTE),
        ('LR-Net-50', 'lrnet50', 23.3, 4.3, 77.3, _LRNET_NOTE),
        ('LR-Net-101', 'lrnet101', 42.0, 8.0, 78.5, _LRNET_NOTE),
    ),
    ('1', 'AA-ResNet'): (
        ('AA-ResNet-50', 'aa_resnet50', 25.8, 4.2, 77.7, ''),
        ('AA-ResNet-101', 'aa_resnet101', 45.4, 8.1, 78.7, ''),
        ('AA-ResNet-152', 'aa_resnet152', 61.6, 11.9, 79.1, ''),
    ),
    ('1', 'SAN, pairwise'): (
        ('SAN10, pairwise', 'san10_pairwise', 10.5, 2.2, 75.5, _SAN_NOTE),
        ('SAN15, pairwise', 'san15_pairwise', 14.1, 3.0, 77.1, ''),
        ('SAN19, pairwise', 'san19_pairwise', 17.6, 3.8, 77.4, ''),
    ),
    ('F2', 'SAN, patchwise'): (
        ('SAN10, patchwise', 'san10_patchwise', 11.8, 1.9, 77.1, ''),
        ('SAN15, patchwise', 'san15_patchwise', 16.2, 2.6, 78.2, ''),
        ('SAN19, patchwise', 'san19_patchwise', 20.5, 3.3, 78.5, ''),
    ),
    ('1', 'Axial ResNet'): (
        ('Axial ResNet-S', 'axial_resnet_s', 12.5, 3.3, 78.1, ''),
        ('Axial ResNet-M', 'axial_resnet_m', 26.5, 6.8, 79.2, _AXIAL_NOTE),
        ('Axial ResNet-L', 'axial_resnet_l', 45.8, 11.6, 79.3, _AXIAL_NOTE),
    ),
    ('F2', 'Axial ResNet, convolution stem'): (
        ('Axial ResNet-S, convolution stem', 'axial_resnet_s_conv_stem', 12.4, 2.8, 77.5, _AXIAL_NOTE),
        ('Axial ResNet-M, convolution stem', 'axial_resnet_m_conv_stem', 26.4, 5.7, 78.6, _AXIAL_NOTE),
        ('Axial ResNet-L, convolution stem', 'axial_resnet_l_conv_stem', 45.6, 9.6, 79.0, _AXIAL_NOTE),
    ),
    # The FLOPs are half of those in Stand-Alone ResNet's paper, which counts a multiply-add as two.
    ('F2', 'Stand-Alone ResNet, convolution stem'): (
        ('Stand-Alone ResNet-26, convolution stem', 'sasa26_conv_stem', 10.3, 2.25, 75.8, ''),
        ('Stand-Alone ResNet-38, convolution stem', 'sasa38_conv_stem', 14.1, 2.85, 77.1, _SASA_38_NOTE),
        ('Stand-Alone ResNet-50, convolution stem', 'sasa50_conv_stem', 18.0, 3.5, 77.4, ''),
    ),
}
_RETINANET_NOTE = 'The paper prints 26.3 M. Its description gives 26.246 M.'
_MASK_NOTE = (
    'The paper leaves out the deconvolution and the logits of the mask head, 6.7 G. '
    'Its row with the involution head includes them.'
)
_KERNEL_GENERATION = 'model.backbone.kernel_generation'


def _rows():
    for depth, resnet, rednet in _TABLE_1:
        options = {'model.backbone.depth': depth}
        config = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
        yield Row('1', f'ResNet-{depth}', *resnet[:2], config, options, resnet[2], curve='ResNet')
        config = f'mmpretrain/rednet{depth}.py'
        yield Row('1', f'RedNet-{depth}', *rednet[:2], config, accuracy=rednet[2], curve='RedNet')
    for (table, curve), models in _CURVES.items():
        for model, config, params, flops, accuracy, note in models:
            config = f'mmpretrain/{config}.py'
            yield Row(table, model, params, flops, config, accuracy=accuracy, note=note, curve=curve)

    for model, params, flops, config, note in (
        ('RetinaNet, ResNet-50, FPN', 37.7, 239.3, 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', ''),
        ('RetinaNet, RedNet-50, FPN', 27.8, 210.1, 'retinanet_rednet50_fpn', ''),
        ('RetinaNet, RedNet-50, involution FPN', 26.3, 199.9, 'retinanet_rednet50_invfpn', _RETINANET_NOTE),
        ('Faster R-CNN, ResNet-50, FPN', 41.5, 207.1, 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', ''),
        ('Faster R-CNN, RedNet-50, FPN', 31.6, 177.9, 'faster_rcnn_rednet50_fpn', ''),
        ('Faster R-CNN, RedNet-50, involution FPN', 29.5, 135.0, 'faster_rcnn_rednet50_invfpn', ''),
        ('Faster R-CNN, RedNet-50, involution FPN, head', 29.0, 91.5, 'faster_rcnn_rednet50_invfpn_invhead', ''),
        ('Mask R-CNN, ResNet-50, FPN', 44.2, 253.4, 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', _MASK_NOTE),
        ('Mask R-CNN, RedNet-50, FPN', 34.2, 224.2, 'mask_rcnn_rednet50_fpn', _MASK_NOTE),
        ('Mask R-CNN, RedNet-50, involution FPN', 32.2, 181.3, 'mask_rcnn_rednet50_invfpn', _MASK_NOTE),
        ('Mask R-CNN, RedNet-50, involution FPN, head', 29.5, 104.6, 'mask_rcnn_rednet50_invfpn_invhead', ''),
    ):
        yield Row('3', model, params, flops, config if '::' in config else f'mmdet/{config}.py', note=note)

    fpn = 'mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py'
    yield Row('4', 'Semantic FPN, ResNet-50, FPN', 28.5, 362.8, fpn)
    yield Row('4', 'Semantic FPN, RedNet-50, FPN', 18.5, 293.9, 'mmseg/semantic_fpn_rednet50_fpn.py')
    yield Row('4', 'Semantic FPN, RedNet-50, involution FPN', 16.4, 205.2, 'mmseg/semantic_fpn_rednet50_invfpn.py')
    upernet = 'mmseg::upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py'
    yield Row('5', 'UPerNet, ResNet-50', 66.4, 1894.5, upernet)
    yield Row('5', 'UPerNet, RedNet-50', 56.4, 1825.6, 'mmseg/upernet_rednet50.py')

    for table, model, params, flops, options in (
        ('6a', '3x3 kernels', 14.7, 2.4, {'model.backbone.kernel_size': 3}),
        ('6a', '5x5 kernels', 15.1, 2.5, {'model.backbone.kernel_size': 5}),
        ('6a', '7x7 kernels', 15.5, 2.6, {'model.backbone.kernel_size': 7}),
        ('6a', '9x9 kernels', 16.2, 2.7, {'model.backbone.kernel_size': 9}),
        ('6b', '1 group channel', 30.2, 5.0, {'model.backbone.group_channels': 1}),
        ('6b', '4 group channels', 18.5, 3.0, {'model.backbone.group_channels': 4}),
        ('6b', '16 group channels', 15.5, 2.6, {'model.backbone.group_channels': 16}),
        ('6b', 'C group channels', 14.6, 2.4, {'model.backbone.group_channels': None}),
        ('6c', 'W', 18.1, 3.0, {_KERNEL_GENERATION: dict(type='mmrednet.LinearKernelGeneration')}),
        ('6c', 'W1 sigma W0, r = 1', 19.4, 3.2, {'model.backbone.reduction_ratio': 1}),
        ('6c', 'W1 sigma W0, r = 4', 15.5, 2.6, {'model.backbone.reduction_ratio': 4}),
        ('6c', 'W1 sigma W0, r = 16', 14.6, 2.4, {'model.backbone.reduction_ratio': 16}),
    ):
        options = {'model.backbone.stem': 'conv', **options}
        yield Row(table, f'RedNet-50, {model}', params, flops, 'mmpretrain/rednet50.py', options)


ROWS = tuple(_rows())


def load_config(row: Row) -> Config:
    """Returns the config of a row's model."""
    config = read_config(row.config if '::' in row.config else str(CONFIGS / row.config))
    config.merge_from_dict(dict(row.options))
    if row.model.startswith('ResNet') and config.model.backbone.depth in (26, 38):
        config.model.backbone.type = 'mmrednet.ShallowResNet'
    return config


def build_model(config: Config) -> nn.Module:
    """Builds the model of a toolbox's config, on the meta device and in evaluation mode."""
    scope = config.default_scope
    # mmpretrain's ResNet reads tensors while it is built.
    device = 'cpu' if scope == 'mmpretrain' else 'meta'
    with DefaultScope.overwrite_default_scope(scope), torch.device(device):
        return import_module(f'{scope}.registry').MODELS.build(config.model).to('meta').eval()


def measure(row: Row) -> Complexity:
    """Counts the parameters and FLOPs of a row's model by the convention of its table.

    Tables 1 and 6 and Figure 2: images of 224x224. Table 3: images of 1280x800, 1000 proposals, 100 masks; only
    parameters that are trained, without the stem and the first stage. Tables 4 and 5: images of 2048x1024; parameters
    with those of an auxiliary head, FLOPs of inference.
    """
    # The parameters that `frozen_stages=1` freezes in ResNet and RedNet.
    frozen = tuple('backbone.' + stage for stage in ('stem.', 'conv1.', 'bn1.', 'layer1.')) if row.table == '3' else ()
    size = {'3': (800, 1280), '4': (1024, 2048), '5': (1024, 2048)}.get(row.table, (224, 224))
    return measure_config(load_config(row), *size, frozen)


def measure_config(config: Config, height: int, width: int, frozen: tuple[str, ...] = ()) -> Complexity:
    """Counts the parameters of a config's model and its FLOPs for an image, by the convention of the paper.

    Args:
        config (Config): A config of mmpretrain, mmdet or mmseg.
        height (int): Height of the image in pixels.
        width (int): Width of the image in pixels.
        frozen (tuple[str]): Prefixes of the names of parameters that are not counted. Defaults to ``()``.
    """
    model = build_model(config)
    params = sum(value.numel() for name, value in model.named_parameters() if not name.startswith(frozen))
    images = torch.empty(1, 3, height, width, device='meta')
    return Complexity(params, count_flops(run_model, model, images))


def run_model(model: Any, images: Tensor) -> None:
    """Runs a toolbox's model on images. A two-stage detector gets 1000 boxes, since choosing them needs real images."""
    if not hasattr(model, 'roi_head'):
        model(images, mode='tensor')
        return
    features = model.extract_feat(images)
    model.rpn_head(features)
    channels = features[0].shape[1]
    model.roi_head.bbox_head(images.new_empty(1000, channels, 7, 7))
    if model.roi_head.with_mask:
        model.roi_head.mask_head(images.new_empty(100, channels, 14, 14))
