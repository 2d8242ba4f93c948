import pytest
import torch
from helpers import RELEASED, ROOT
from mmdet.models.necks import FPN
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from torch import nn
from zoo import cap_proposals

from mmrednet.layers import Involution

SCOPE = 'mmdet'


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('fpn_involution_neck', dict(num_outs=5)),
        ('fpn_involution_neck_retinanet', dict(num_outs=5, start_level=1, add_extra_convs='on_input')),
    ],
)
def test_fpn_has_the_released_names_and_shapes(name, options):
    channels = [256, 512, 1024, 2048]
    neck = MODELS.build(dict(type='mmrednet.InvolutionFPN', in_channels=channels, out_channels=256, **options))
    assert {'neck.' + key: list(value.shape) for key, value in neck.state_dict().items()} == RELEASED[name]
    neck.init_weights()
    features = [torch.rand(1, c, *size) for c, size in zip(channels, ((25, 33), (13, 17), (7, 9), (4, 5)), strict=True)]
    plain = FPN(channels, 256, **options)
    assert [out.shape for out in neck(features)] == [out.shape for out in plain(features)]


def test_fpn_is_fpn_but_for_its_output_convolutions():
    """With kernels that copy the pixel in the middle, what is left is mmdet's own top-down path."""
    neck = MODELS.build(
        dict(
            type='mmrednet.InvolutionFPN',
            in_channels=[8, 16],
            out_channels=16,
            num_outs=3,
            involution_cfg=dict(kernel_size=3, group_channels=4),
        )
    )
    plain = FPN([8, 16], 16, 3)
    plain.lateral_convs.load_state_dict(neck.lateral_convs.state_dict())
    for involution, conv in zip(neck.fpn_convs, plain.fpn_convs, strict=True):
        assert isinstance(involution, Involution) and involution.groups == 4
        nn.init.zeros_(involution.conv2.conv.weight)
        involution.conv2.conv.bias.data = torch.eye(9)[4].repeat(4)
        nn.init.dirac_(conv.conv.weight)
        nn.init.zeros_(conv.conv.bias)
    features = [torch.rand(2, 8, 12, 10), torch.rand(2, 16, 6, 5)]
    for out, expected in zip(neck(features), plain(features), strict=True):
        torch.testing.assert_close(out, expected)


HEADS = {
    'rpn_head': dict(type='mmrednet.InvolutionRPNHead', in_channels=256, feat_channels=256),
    'mask_head': dict(type='mmrednet.InvolutionFCNMaskHead', num_classes=80),
}


@pytest.mark.parametrize(
    ('name', 'prefix', 'replaced'),
    [
        ('rpn_head_involution', 'rpn_head', 'rpn_head.rpn_conv.'),
        ('fcn_mask_head_involution', 'mask_head', 'roi_head.mask_head.convs.'),
    ],
)
def test_heads_have_the_released_names_and_shapes(name, prefix, replaced):
    head = MODELS.build(HEADS[prefix])
    plain = MODELS.build(dict(HEADS[prefix], type=type(head).__mro__[1].__name__))
    parent = replaced[: replaced.index(prefix)] + prefix + '.'
    state = {parent + key: list(value.shape) for key, value in head.state_dict().items()}
    assert {key: shape for key, shape in state.items() if key.startswith(replaced)} == RELEASED[name]
    rest = {key: shape for key, shape in state.items() if not key.startswith(replaced)}
    assert rest == {
        parent + key: list(value.shape)
        for key, value in plain.state_dict().items()
        if not (parent + key).startswith(replaced)
    }


@pytest.mark.parametrize('num_convs', (0, 1, 2))
def test_rpn_head(num_convs):
    head = MODELS.build(dict(HEADS['rpn_head'], in_channels=32, feat_channels=64, num_convs=num_convs))
    head.init_weights()
    involutions = [module for module in head.modules() if isinstance(module, Involution)]
    assert len(involutions) == max(num_convs, 1) and involutions[0].kernel_size == (7, 7)
    scores, boxes = head([torch.rand(2, 32, 9, 12)])
    assert scores[0].shape == (2, 9, 9, 12) and boxes[0].shape == (2, 36, 9, 12)


@pytest.mark.parametrize('norm_cfg', (None, dict(type='BN')))
def test_mask_and_bbox_heads(norm_cfg):
    options = dict(in_channels=32, conv_out_channels=64, num_classes=5, norm_cfg=norm_cfg)
    options['involution_cfg'] = dict(kernel_size=5, group_channels=8)
    mask_head = MODELS.build(dict(type='mmrednet.InvolutionFCNMaskHead', **options))
    bbox_head = MODELS.build(dict(type='mmrednet.InvolutionBBoxHead', **options))
    for head, norms in ((mask_head, mask_head.convs), (bbox_head, bbox_head.shared_convs)):
        head.init_weights()
        involutions = [module for module in head.modules() if isinstance(module, Involution)]
        assert len(involutions) == 4 and all(i.groups == 8 and i.kernel_size == (5, 5) for i in involutions)
        assert all(isinstance(block[-1], nn.ReLU) and len(block) == 2 + (norm_cfg is not None) for block in norms)
    assert mask_head(torch.rand(3, 32, 14, 14)).shape == (3, 5, 28, 28)
    scores, boxes = bbox_head(torch.rand(3, 32, 7, 7))
    assert scores.shape == (3, 6) and boxes.shape == (3, 20)


def load(name):
    return Config.fromfile(ROOT / 'configs' / 'mmdet' / f'{name}.py')


@pytest.mark.parametrize('name', ('faster_rcnn_rednet50_fpn', 'faster_rcnn_rednet50_invfpn'))
def test_config_builds_trains_and_predicts(name):
    config = load(name)
    config.model.backbone.update(init_cfg=None, frozen_stages=-1, norm_eval=False)
    config.model.test_cfg.rcnn.score_thr = 0
    cap_proposals(config.model)
    model = MODELS.build(config.model)
    model.init_weights()
    inputs = demo_mm_inputs(2, [[3, 97, 128], [3, 128, 101]], num_classes=80)
    losses = model(**model.data_preprocessor(inputs, True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(inputs, False), mode='predict')
    assert len(results) == 2 and all(len(result.pred_instances) > 0 for result in results)


def test_recipe_of_the_paper():
    config = load('faster_rcnn_rednet50_invfpn')
    assert config.optim_wrapper.optimizer == dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4)
    warmup, steps = config.param_scheduler
    assert (warmup.type, warmup.start_factor, warmup.end) == ('LinearLR', 0.001, 2000)
    assert (steps.milestones, steps.end, config.train_cfg.max_epochs) == ([8, 11], 12, 12)
    assert (config.model.backbone.frozen_stages, config.model.backbone.norm_eval) == (1, True)
    assert config.model.backbone.init_cfg == dict(type='Pretrained', checkpoint='mmrednet://rednet50')
    assert config.train_dataloader.dataset.data_root == 'data/coco/'


def test_fpn_keeps_norm_layers_and_activations():
    options = dict(
        in_channels=[32, 64],
        out_channels=32,
        num_outs=3,
        add_extra_convs='on_output',
        norm_cfg=dict(type='GN', num_groups=8),
        act_cfg=dict(type='ReLU'),
    )
    neck, plain = MODELS.build(dict(type='mmrednet.InvolutionFPN', **options)), FPN(**options)
    for ours, theirs in zip(neck.fpn_convs, plain.fpn_convs, strict=True):
        counts = [
            sum(type(m) is kind for name, m in level.named_modules() if 'conv1' not in name)
            for level in (ours, theirs)
            for kind in (nn.GroupNorm, nn.ReLU)
        ]
        assert counts[:2] == counts[2:] == [1, 1]
    outs = neck([torch.randn(2, 32, 9, 12), torch.randn(2, 64, 5, 6)])
    assert all((out >= 0).all() for out in outs)


def test_new_style_config_with_classes_in_the_place_of_names():
    from mmrednet.models.detection import InvolutionFPN
    from mmrednet.models.rednet import RedNet

    backbone = MODELS.build(dict(type=RedNet, depth=26, norm_cfg=dict(type=nn.BatchNorm2d), out_indices=(0, 1)))
    neck = MODELS.build(dict(type=InvolutionFPN, in_channels=[256, 512], out_channels=32, num_outs=2))
    assert [out.shape for out in neck(backbone(torch.rand(1, 3, 64, 64)))] == [(1, 32, 16, 16), (1, 32, 8, 8)]
