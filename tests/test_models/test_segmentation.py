import copy

import mmseg.models.necks
import pytest
import torch
from helpers import RELEASED, hide, run_python
from mmengine.hub import get_config
from mmseg.registry import MODELS

from mmrednet.layers import Involution
from mmrednet.models.rednet import RedNet

SCOPE = 'mmseg'


def test_fpn_is_the_toolboxs_own_with_the_released_names():
    channels = [256, 512, 1024, 2048]
    neck = MODELS.build(dict(type='mmrednet.InvolutionFPN', in_channels=channels, out_channels=256, num_outs=4))
    assert isinstance(neck, mmseg.models.necks.FPN)
    assert {'neck.' + key: list(value.shape) for key, value in neck.state_dict().items()} == (
        RELEASED['fpn_involution_neck']
    )
    assert all(isinstance(conv, Involution) for conv in neck.fpn_convs)
    sizes = ((17, 25), (9, 13), (5, 7), (3, 4))
    outs = neck([torch.rand(1, c, *size) for c, size in zip(channels, sizes, strict=True)])
    assert [out.shape for out in outs] == [(1, 256, *size) for size in sizes]


@pytest.mark.parametrize(
    ('scope', 'absent'), (('mmdet', ()), ('mmseg', ()), ('mmdet', ('mmseg',)), ('mmseg', ('mmdet',)))
)
def test_one_name_resolves_in_either_toolbox(scope, absent):
    """Also where both are installed, or only the one."""
    run_python(f"""
{hide(*absent)}
from mmengine.registry import init_default_scope
init_default_scope({scope!r})
from {scope}.registry import MODELS
from {scope}.models.necks import FPN
import mmrednet
for name in ('mmrednet.InvolutionFPN', 'InvolutionFPN'):
    neck = MODELS.build(dict(type=name, in_channels=[16], out_channels=16, num_outs=1))
    assert isinstance(neck, FPN), type(neck).__mro__
""")


def test_readme_s_backbone_in_a_config_of_mmseg():
    """mmseg's base configs name a ResNet's checkpoint beside the backbone, which the README takes away."""
    config = get_config('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py')
    backbone = dict(
        type='mmrednet.RedNet',
        depth=26,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='rednet26.pth', prefix='backbone.'),
    )
    config.merge_from_dict(dict(model=dict(backbone=dict(_delete_=True, **backbone))))
    with pytest.raises(ValueError, match='pretrained=None'):
        MODELS.build(copy.deepcopy(config.model))  # mmseg writes into it
    config.model.pretrained = None
    assert isinstance(MODELS.build(config.model).backbone, RedNet)
