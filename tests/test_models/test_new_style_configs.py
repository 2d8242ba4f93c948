"""New-style configs: Python modules with classes instead of names."""

import pytest
import torch
from helpers import registry
from mmengine.config import Config

from mmrednet.models.rednet import RedNet
from mmrednet.registry import RUNNERS

# As in the toolboxes' own folders of such configs.
BASE = """
from mmdet.models import FPN, DetDataPreprocessor, ResNet, RetinaHead, RetinaNet
from torch.nn import BatchNorm2d

model = dict(
    type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor),
    backbone=dict(
        type=ResNet, depth=50, out_indices=(0, 1, 2, 3), style='pytorch', norm_cfg=dict(type=BatchNorm2d)
    ),
    neck=dict(type=FPN, in_channels=[64, 128, 256, 512], out_channels=32, num_outs=5),
    bbox_head=dict(type=RetinaHead, num_classes=3, in_channels=32, feat_channels=32),
)
"""
CHILD = """
from mmengine.config import read_base

with read_base():
    from .base import *

{imports}

model.merge(dict(
    backbone=dict(
        _delete_=True,
        type={RedNet},
        depth=26,
        base_channels=16,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type={BatchNorm2d}),
        init_cfg=dict(type={Pretrained}, checkpoint={checkpoint!r}),
    ),
    neck=dict(type={InvolutionFPN}, involution_cfg=dict(act_cfg=dict(type={ReLU}))),
    bbox_head=dict(conv_cfg=dict(type='mmrednet.Involution')),
))
runner_type = {Runner}
"""
IMPORTS = """
from mmengine.model import PretrainedInit
from torch.nn import BatchNorm2d, ReLU

from mmrednet.engine import Runner
from mmrednet.models.detection import InvolutionFPN
from mmrednet.models.rednet import RedNet
"""
CLASSES = dict(
    Pretrained='PretrainedInit', **{n: n for n in ('RedNet', 'BatchNorm2d', 'InvolutionFPN', 'ReLU', 'Runner')}
)
NAMES = dict(Pretrained="'Pretrained'", BatchNorm2d="'BN'", ReLU="'ReLU'") | {
    name: f"'mmrednet.{name}'" for name in ('RedNet', 'InvolutionFPN', 'Runner')
}


def write(folder, words, **arguments):
    (folder / 'base.py').write_text(BASE)
    path = folder / 'child.py'
    path.write_text(CHILD.format(**words, imports=IMPORTS if words is CLASSES else '', **arguments))
    return path


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(1)
    backbone = RedNet(26, base_channels=16)
    torch.save(backbone.state_dict(), tmp_path / 'backbone.pth')
    return tmp_path / 'backbone.pth'


@pytest.mark.parametrize('dumped', [False, True], ids=['read', 'dumped'])
@pytest.mark.parametrize('words', [CLASSES, NAMES], ids=['classes', 'names'])
def test_builds_the_same_model(tmp_path, checkpoint, words, dumped):
    """By class, by name, and by the path of the class, which is what a run writes into its working directory."""
    config = Config.fromfile(write(tmp_path, words, checkpoint=str(checkpoint)))
    if dumped:
        config.dump(tmp_path / 'dumped.py')
        config = Config.fromfile(tmp_path / 'dumped.py')
    model = registry('mmdet').build(config.model)
    model.init_weights()
    torch.manual_seed(1)
    backbone, expected = model.backbone.state_dict(), RedNet(26, base_channels=16).state_dict()
    assert all(torch.equal(backbone[name], value) for name, value in expected.items())
    assert not any(parameter.requires_grad for parameter in model.backbone.layer1.parameters())
    assert [type(layer).__name__ for layer in model.neck.fpn_convs] == ['Involution'] * 4
    assert type(model.bbox_head.cls_convs[0].conv).__name__ == 'Involution'
    runner = config.runner_type
    assert (RUNNERS.get(runner) if isinstance(runner, str) else runner).__module__ == 'mmrednet.engine.runner'
    model.eval()
    with torch.no_grad():
        assert [len(level) for level in model(torch.rand(1, 3, 64, 64))] == [5, 5]


def test_an_update_that_keeps_the_other_backbones_arguments_is_refused(tmp_path):
    path = write(tmp_path, CLASSES, checkpoint=None)
    path.write_text(path.read_text().replace('model.merge', 'model.update'))
    with pytest.raises(TypeError, match=r'_delete_.*model\.merge'):
        registry('mmdet').build(Config.fromfile(path).model)
