import pytest
import torch
from helpers import ConstantKernel
from mmcv.cnn import ConvModule, build_conv_layer
from mmdet.models.necks import FPN
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmengine.registry import init_default_scope
from mmpretrain.models.backbones import ResNet
from torch import nn

from mmrednet.layers import Involution
from mmrednet.models.involution import build_involution, to_involution
from mmrednet.registry import MODELS


def test_kernel_generation_is_replaceable():
    layer = build_involution(
        channels=16, kernel_size=3, group_channels=8, kernel_generation=dict(type=ConstantKernel, scale=1 / 9)
    )
    x = torch.rand(2, 16, 6, 6)
    torch.testing.assert_close(layer(x), nn.AvgPool2d(3, 1, 1)(x))
    assert dict(layer.named_parameters()).keys() == {'kernel_generation.weight'}
    linear = build_involution(
        channels=16, kernel_size=3, kernel_generation=dict(type='mmrednet.LinearKernelGeneration')
    )
    assert [tuple(p.shape) for p in linear.parameters()] == [(9, 16, 1, 1), (9,)]


@pytest.mark.parametrize('name', ['LocalRelation', 'Neighbourhood', 'Pairwise', 'Patchwise', 'SelfAttention'])
def test_the_kernel_generation_of_each_member_of_the_family_has_a_config(name):
    layer = build_involution(channels=32, kernel_generation=dict(type=f'mmrednet.{name}KernelGeneration'))
    assert layer(torch.rand(2, 32, 8, 9)).shape == (2, 32, 8, 9)


def test_group_norm_of_any_toolbox_fits_the_few_channels_of_phi():
    layer = build_involution(channels=32, norm_cfg=dict(type='GN', num_groups=32))
    assert layer.conv1.bn.num_groups == layer.conv1.bn.num_channels == 8
    assert layer(torch.rand(2, 32, 5, 5)).shape == (2, 32, 5, 5)


def test_conv_cfg_in_the_toolboxes_modules():
    init_default_scope('mmdet')
    conv_cfg = dict(type='mmrednet.Involution', group_channels=8)
    fpn = FPN([32, 64], 32, 3, conv_cfg=conv_cfg, add_extra_convs='on_output')
    assert [type(module.conv) for module in fpn.lateral_convs] == [nn.Conv2d] * 2
    assert [type(module.conv) for module in fpn.fpn_convs] == [Involution] * 3
    outs = fpn([torch.rand(1, 32, 16, 12), torch.rand(1, 64, 8, 6)])
    assert [out.shape[2:] for out in outs] == [(16, 12), (8, 6), (4, 3)]
    head = FCNMaskHead(num_convs=2, in_channels=32, conv_out_channels=16, num_classes=3, conv_cfg=conv_cfg)
    head.init_weights()
    assert head(torch.rand(2, 32, 14, 14)).shape == (2, 3, 28, 28)
    resnet = ResNet(50, conv_cfg=conv_cfg)
    assert resnet(torch.rand(1, 3, 65, 33))[0].shape == ResNet(50)(torch.rand(1, 3, 65, 33))[0].shape
    assert sum(isinstance(module, Involution) for module in resnet.modules()) == 17


def test_conv_cfg_arguments():
    conv = build_conv_layer(dict(type='mmrednet.Involution'), 32, 64, 3, stride=2, padding=1, bias=False)
    assert isinstance(conv.projection, nn.Conv2d) and conv.projection.bias is None
    module = ConvModule(
        32,
        32,
        3,
        2,
        2,
        2,
        conv_cfg=dict(type='mmrednet.Involution', involution_kernel_size=7),
        norm_cfg=dict(type='BN'),
    )
    assert module.conv.kernel_size == (7, 7)
    assert module(torch.rand(2, 32, 11, 8)).shape == ConvModule(32, 32, 3, 2, 2, 2)(torch.rand(2, 32, 11, 8)).shape
    layer = MODELS.build(dict(type='mmrednet.Involution', channels=32, kernel_size=5))
    assert isinstance(layer, Involution) and layer.kernel_size == (5, 5)


@pytest.mark.parametrize('argument', ('kernel_generation', 'act_cfg'))
def test_a_dict_without_a_type_is_refused(argument):
    with pytest.raises(KeyError, match=f"{argument} must be a dict with a 'type'"):
        build_involution(channels=16, **{argument: dict(bias=True)})


@pytest.mark.parametrize('kernel_size', (3, 7))
def test_an_involution_without_a_norm_layer_keeps_the_scale(kernel_size):
    conv = ConvModule(32, 32, 3, padding=1, act_cfg=None)
    torch.manual_seed(0)
    out = to_involution(conv, dict(kernel_size=kernel_size))(torch.randn(8, 32, 24, 24))
    assert 0.85 < out.std() < 1.15
