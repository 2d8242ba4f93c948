from functools import partial

import pytest
import torch
import torch._dynamo.testing
from helpers import RELEASED, run_python
from mmengine.model import BaseModel, BaseModule, PretrainedInit
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

from mmrednet.layers import Involution
from mmrednet.models.rednet import Bottleneck, RedNet
from mmrednet.registry import register_model


def shapes(module, prefix=''):
    return {prefix + name: list(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize(
    ('name', 'arguments'),
    [
        ('rednet26_imagenet', dict(depth=26)),
        ('rednet50_imagenet', dict(depth=50)),
        ('rednet50_dense_backbone', dict(depth=50, stem_kernel_size=7)),
    ],
)
def test_names_and_shapes_are_those_of_the_released_checkpoints(name, arguments):
    released = {key: shape for key, shape in RELEASED[name].items() if key.startswith('backbone.')}
    assert shapes(RedNet(**arguments), 'backbone.') == released


# Table 1, with the classifier of 1000 classes.
@pytest.mark.parametrize(('depth', 'millions'), ((26, 9.23), (38, 12.39), (50, 15.54), (101, 25.65), (152, 33.98)))
def test_parameters_of_table_1(depth, millions):
    model = nn.ModuleList([RedNet(depth), nn.Linear(2048, 1000)])
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize('size', ((64, 64), (65, 97), (33, 225)))
@pytest.mark.parametrize('stem', ('involution', 'conv'))
def test_output_shapes(size, stem):
    model = RedNet(26, stem=stem, out_indices=(0, 1, 2, 3)).eval()
    outs = model(torch.rand(1, 3, *size))
    expected = [(1, 256 * 2**i, *(-(-s // 2 ** (i + 2)) for s in size)) for i in range(4)]
    assert [out.shape for out in outs] == expected


@pytest.mark.parametrize('size', (225, 769))
def test_sizes_that_the_strides_do_not_divide(size):
    (out,) = RedNet(26, out_indices=(3,)).eval()(torch.rand(1, 3, size, 65))
    assert out.shape == (1, 2048, -(-size // 32), 3)


def test_dilated_stages():
    model = RedNet(26, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True, out_indices=(1, 3)).eval()
    outs = model(torch.rand(1, 3, 65, 65))
    assert [out.shape[2:] for out in outs] == [(9, 9), (9, 9)]
    assert [m.dilation[0] for m in model.layer3.modules() if isinstance(m, Involution)] == [1, 2, 2, 2]
    assert model.layer4[0].conv2.dilation == (2, 2)


@pytest.mark.parametrize('contract_dilation', (False, True))
@pytest.mark.parametrize('multi_grid', (None, (1, 2, 4)))
def test_blocks_are_dilated_as_those_of_mmseg(contract_dilation, multi_grid):
    from mmseg.models.backbones import ResNet

    arguments = dict(
        strides=(1, 2, 2, 1), dilations=(1, 1, 2, 4), contract_dilation=contract_dilation, multi_grid=multi_grid
    )
    with torch.device('meta'):
        networks = RedNet(50, **arguments), ResNet(50, **arguments)
    dilations, expected = (
        [[block.conv2.dilation for block in getattr(network, f'layer{i}')] for i in (1, 2, 3, 4)]
        for network in networks
    )
    assert dilations == expected


def test_options_reach_the_involutions():
    phi = dict(type='mmrednet.LinearKernelGeneration')
    model = RedNet(
        26,
        kernel_size=5,
        group_channels=None,
        kernel_generation=phi,
        stem_kernel_size=9,
        num_stages=2,
        out_indices=(1,),
    )
    assert not hasattr(model, 'layer3')
    stem, *trunk = [module for module in model.modules() if isinstance(module, Involution)]
    assert stem.kernel_size == (9, 9)
    assert all(layer.kernel_size == (5, 5) and layer.groups == 1 for layer in trunk)
    assert model(torch.rand(2, 3, 32, 32))[0].shape == (2, 512, 4, 4)


@register_model('ConstantPhi')
class Constant(BaseModule):
    """A kernel generation function with initial values of its own, as a plugin of mmdet's ResNet has."""

    def __init__(self, channels, groups, kernel_size, **_):
        super().__init__(init_cfg=dict(type='Constant', layer='Conv2d', val=0, bias=3))
        self.conv = nn.Conv2d(channels, groups * kernel_size[0] * kernel_size[1], 1)


def test_init_weights_reaches_kernel_generation_functions():
    model = RedNet(26, kernel_generation=dict(type='mmrednet.ConstantPhi'))
    model.init_weights()
    found = [module for module in model.modules() if isinstance(module, Constant)]
    assert found and all(phi.is_init and not phi.conv.weight.any() and (phi.conv.bias == 3).all() for phi in found)


def test_activation_checkpointing_changes_no_gradient():
    x = torch.rand(2, 3, 64, 64)
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = RedNet(26, with_cp=with_cp, zero_init_residual=False)
        model.init_weights()
        model(x)[0].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_empty_batch():
    x = torch.rand(0, 3, 32, 32, requires_grad=True)
    RedNet(26)(x)[0].sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize('norm_cfg', (dict(type='IN'), dict(type='BN', affine=False)), ids=str)
def test_norm_layers_without_weights(norm_cfg):
    model = RedNet(26, norm_cfg=norm_cfg)
    model.init_weights()
    assert model.layer1[0].bn3.weight is None
    assert model(torch.rand(2, 3, 64, 64))[0].isfinite().all()


@pytest.mark.parametrize('initialised', (False, True))
def test_blocks_start_as_identities(initialised):
    """Also where a network is only constructed, as in plain PyTorch."""
    model = RedNet(26)
    if initialised:
        model.init_weights()
    blocks = [module for module in model.modules() if isinstance(module, Bottleneck)]
    assert len(blocks) == 8
    assert all((block.bn3.weight == 0).all() and (block.bn1.weight == 1).all() for block in blocks)


def test_a_network_that_was_only_constructed_stays_finite_in_evaluation():
    """Involution multiplies features: without zeroed residuals its running statistics gave NaN."""
    torch.manual_seed(0)
    model = RedNet(101, base_channels=16, stem_channels=32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(4, 3, 32, 32)
    for _ in range(4):
        model.train()(x)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            assert model.eval()(x)[0].isfinite().all()


def test_constructing_draws_no_more_random_numbers_than_the_layers_do():
    """Seeds give the same weights as before the constructor zeroed residuals."""
    states = []
    for zero in (False, True):
        torch.manual_seed(0)
        RedNet(26, zero_init_residual=zero)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_each_relu_serves_one_place():
    """A hook for class activation maps on the last block's `relu` gets only the block's output."""
    model, shapes = RedNet(26), {}
    for name, module in model.layer4[0].named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _, __, out, name=name: shapes.setdefault(name, []).append(out.shape))
    (out,) = model(torch.rand(2, 3, 64, 64))
    assert {name: [shape[1] for shape in found] for name, found in shapes.items() if '.' not in name} == {
        'relu1': [512],
        'relu2': [512],
        'relu': [2048],
    }
    assert shapes['relu'] == [out.shape]


def test_mmaction_gets_a_single_output_as_a_tensor():
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmaction'):
        single, several = RedNet(26).eval(), RedNet(26, out_indices=(2, 3)).eval()
    x = torch.rand(1, 3, 32, 32)
    assert single(x).shape == (1, 2048, 1, 1) and len(several(x)) == 2


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint in the layout of the released ones."""
    torch.manual_seed(1)
    state = {'backbone.' + name: torch.randn_like(v.float()).to(v.dtype) for name, v in RedNet(26).state_dict().items()}
    state['head.fc.weight'] = torch.rand(1000, 2048)
    torch.save(dict(state_dict=state, meta=dict()), tmp_path / 'rednet26.pth')
    return tmp_path / 'rednet26.pth', state


def test_freezes_what_a_checkpoint_filled(checkpoint):
    path, state = checkpoint
    model = RedNet(
        26,
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix='backbone.'),
    )
    model.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state['backbone.' + name])
    model.train()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(('stem.', 'layer1.'))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.rand(2, 3, 64, 64))[0].sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture
def warned(monkeypatch):
    """Returns a list of RedNet's warnings."""
    texts = []
    monkeypatch.setattr('mmrednet.models.backbone.print_log', lambda text, **_: texts.append(text))
    return texts


def assert_frozen(model):
    """Checks that ``frozen_stages=1`` and ``norm_eval=True`` mean the same as in the toolboxes' ResNet."""
    trained = {name.split('.')[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {'layer2', 'layer3', 'layer4'}
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_random_weights_are_frozen_too_and_one_warning_says_so(warned):
    model = RedNet(26, frozen_stages=1, norm_eval=True)
    assert_frozen(model)  # before any wrapper of the model looks for gradients
    model.init_weights()
    assert_frozen(model.train().train())
    assert len(warned) == 1
    for words in ('frozen_stages=1', 'norm_eval=True', 'model.backbone.init_cfg.checkpoint', 'mmrednet://rednet26'):
        assert words in warned[0]


@pytest.mark.parametrize('arguments', (dict(frozen_stages=0), dict(norm_eval=True)))
def test_each_of_the_two_is_warned_about(arguments, warned):
    RedNet(26, **arguments).eval()
    assert not warned
    RedNet(26, **arguments).train()
    assert len(warned) == 1


def test_no_warning_where_nothing_is_frozen_or_a_checkpoint_was_loaded(warned, checkpoint):
    RedNet(26).train()
    start = {f'module.{name}': value for name, value in RedNet(26).state_dict().items()}
    # As load_from loads, after init_weights.
    model = RedNet(26, frozen_stages=1, norm_eval=True)
    model.init_weights()
    nn.ModuleDict(dict(module=model)).load_state_dict(start)
    assert_frozen(model.train())
    model = RedNet(26, frozen_stages=1, init_cfg=dict(checkpoint=str(checkpoint[0])))
    model.init_weights()
    model.train()
    assert not warned
    # A checkpoint without weights of the backbone.
    model = RedNet(26, frozen_stages=1)
    nn.ModuleDict(dict(backbone=model)).load_state_dict({'head.weight': torch.ones(1)}, strict=False)
    model.train()
    assert len(warned) == 1


@pytest.mark.parametrize('prefix', ('', 'backbone.'))
@pytest.mark.parametrize('network', ('ResNet', 'ResNetV1d'))
def test_the_weights_of_a_resnet_are_refused_as_a_whole(network, prefix):
    """mmengine's non-strict loading would fill the layers whose names and shapes agree."""
    from mmengine.runner.checkpoint import load_state_dict
    from mmpretrain.models import backbones

    resnet = {prefix + name: value for name, value in getattr(backbones, network)(depth=50).state_dict().items()}
    model = RedNet(50)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = nn.ModuleDict(dict(backbone=model)) if prefix else model
    with pytest.raises(ValueError, match='ResNet.*layer1.0.conv2.weight.*load_from=None.*init_cfg=None'):
        load_state_dict(whole, resnet, strict=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Network(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = RedNet(26, base_channels=16, stem_channels=32, frozen_stages=1)

    def forward(self, mode='tensor', **kwargs):
        return dict(loss=self.backbone(torch.rand(2, 3, 32, 32))[-1].square().mean())


@pytest.mark.parametrize('kind', (Runner, FlexibleRunner), ids=lambda kind: kind.__name__)
def test_every_run_freezes_what_the_config_says(kind, tmp_path):
    """From scratch, resumed, and from a checkpoint."""

    def train(folder, epochs, **options):
        runner = kind(
            Network(),
            work_dir=str(folder),
            train_dataloader=dict(dataset=[dict(x=0)], sampler=dict(type='DefaultSampler'), batch_size=1),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            experiment_name=f'{kind.__name__}_{folder.name}_{epochs}',
            **options,
        )
        runner.train()
        return torch.load(folder / f'epoch_{epochs}.pth')['state_dict']

    first = train(tmp_path / 'a', 1)
    second = train(tmp_path / 'a', 2, resume=True)
    third = train(tmp_path / 'b', 1, load_from=str(tmp_path / 'a' / 'epoch_2.pth'))
    for name, value in first.items():
        if name.endswith('conv.weight') and name.startswith(('backbone.stem.', 'backbone.layer1.')):
            assert torch.equal(second[name], value) and torch.equal(third[name], value), name
    name = 'backbone.layer2.0.bn3.weight'
    assert not torch.equal(first[name], second[name]) and not torch.equal(second[name], third[name])


def constant(val, *layers, **kwargs):
    return dict(type='Constant', val=val, **(dict(layer=list(layers)) if layers else {}), **kwargs)


# Forms of init_cfg. `pretrained` makes the entry for a checkpoint that is full of one number.
FORMS = {
    'a dict': lambda pretrained: constant(2.0, 'Conv2d', 'BatchNorm2d'),
    'a list': lambda pretrained: [constant(2.0, 'Conv2d'), constant(3.0, 'BatchNorm2d')],
    'override': lambda pretrained: constant(
        2.0, 'Conv2d', 'BatchNorm2d', override=[constant(4.0, name='layer4'), dict(name='layer1')]
    ),
    'pretrained': lambda pretrained: pretrained(5.0),
    'a list with pretrained first': lambda pretrained: [pretrained(5.0), constant(2.0, 'Conv2d')],
    'a list with pretrained last': lambda pretrained: [constant(2.0, 'Conv2d'), pretrained(5.0)],
    'pretrained twice': lambda pretrained: [pretrained(5.0), pretrained(6.0)],
    'pretrained and override': lambda pretrained: pretrained(5.0, override=constant(4.0, name='layer4')),
    'a class in the place of its name': lambda pretrained: [{**pretrained(5.0), 'type': PretrainedInit}],
}
PROBES = ('layer1.0.conv1.weight', 'layer1.0.bn1.weight', 'layer1.0.bn3.weight', 'layer4.0.conv1.weight')


@pytest.mark.parametrize('zero_init_residual', (False, True))
@pytest.mark.parametrize('form', FORMS)
def test_init_cfg_means_what_it_does_for_resnet(form, zero_init_residual, tmp_path):
    """There is one difference: ResNet zeroes weights that a list's checkpoint gave, and RedNet keeps them."""
    from mmpretrain.models import ResNet

    found = []
    for network in (partial(RedNet, 26, base_channels=16), partial(ResNet, 50, base_channels=16)):

        def pretrained(number, network=network, **kwargs):
            path = tmp_path / f'{number}.pth'
            state_dict = network().state_dict()
            torch.save({name: torch.full_like(value, number) for name, value in state_dict.items()}, path)
            return dict(type='Pretrained', checkpoint=str(path), **kwargs)

        zeroed = zero_init_residual and (network.func is RedNet or 'pretrained' not in form and 'class' not in form)
        model = network(init_cfg=FORMS[form](pretrained), zero_init_residual=zeroed)
        model.init_weights()
        found.append([model.get_parameter(name).unique().tolist() for name in PROBES])
        model.init_weights()
        assert found[-1] == [model.get_parameter(name).unique().tolist() for name in PROBES]
    assert found[0] == found[1] and all(len(values) == 1 for values in found[0])


def test_a_missing_checkpoint_is_named(tmp_path):
    path = str(tmp_path / 'absent.pth')
    model = RedNet(26, init_cfg=dict(type='Pretrained', checkpoint=path))
    with pytest.raises(FileNotFoundError, match=r'absent.pth.*init_cfg(.|\n)*checkpoint=FILE(.|\n)*init_cfg=None'):
        model.init_weights()


@pytest.mark.parametrize('depth', (50, 101, 152))
def test_layers_of_layer_wise_decay_are_those_of_resnet(depth):
    from mmpretrain.models import ResNet

    resnet, rednet = ResNet(depth), RedNet(depth)
    names = ['head.fc.weight', 'backbone.conv1.weight']
    names += [f'backbone.{name}' for name, _ in resnet.named_parameters() if name.endswith('conv1.weight')]
    for name in names:
        expected = resnet.get_layer_depth(name, 'backbone.')
        own = name.replace('backbone.conv1', 'backbone.stem.0.conv')
        assert rednet.get_layer_depth(own, 'backbone.') == expected, name


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(depth=34), ('depth', '34', '50')),
        (dict(depth=50, stem='deep'), ('stem', 'deep', 'involution')),
        (dict(depth=50, out_indices=(4,)), ('out_indices', '(4,)', '3')),
        (dict(depth=50, out_indices=(-1,)), ('out_indices', '-1')),
        (dict(depth=50, out_indices=()), ('out_indices', '()')),
        (dict(depth=50, num_stages=5), ('num_stages', '5')),
        (dict(depth=50, strides=(1, 2)), ('strides', '(1, 2)', '4')),
        (dict(depth=50, dilations=(1, 1, 0, 1)), ('dilations', '0')),
        (dict(depth=50, frozen_stages=5), ('frozen_stages', '5')),
        (dict(depth=50, backend='tpu'), ('backend', 'tpu', 'torch')),
        (dict(depth=50, group_channels=48), ('group_channels', '48')),
        (dict(depth=26, stem_channels=24), ('half of stem_channels', '16', '12', 'group_channels=4')),
        (dict(depth=26, base_channels=24), ('base_channels', '16', '24', 'group_channels=8')),
    ],
    ids=str,
)
def test_errors_name_argument_and_remedy(arguments, words):
    with pytest.raises(ValueError) as info:
        RedNet(**arguments)
    for word in words:
        assert word in str(info.value)


def test_arguments_of_another_backbone_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match="'style'.*_delete_=True"):
        RedNet(depth=50, style='pytorch')


def test_what_a_segmentor_hands_on_is_a_checkpoint(checkpoint):
    path, state = checkpoint
    backbone = {name.removeprefix('backbone.'): value for name, value in state.items() if name.startswith('backbone.')}
    torch.save(backbone, path)
    model = RedNet(26, pretrained=str(path))
    model.init_weights()
    assert all(torch.equal(value, backbone[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match='pretrained=None'):
        RedNet(26, pretrained='open-mmlab://resnet50_v1c', init_cfg=dict(type='Kaiming', layer='Conv2d'))


@pytest.mark.parametrize('training', (False, True))
def test_torch_fx_traces_the_network(training):
    model = RedNet(26, out_indices=(1, 3), zero_init_residual=False).train(training)
    traced = torch.fx.symbolic_trace(model)
    for size in ((64, 96), (65, 33)):
        x = torch.rand(2, 3, *size)
        torch.testing.assert_close(traced(x), model(x))


def test_torchvision_extracts_features():
    from torchvision.models.feature_extraction import create_feature_extractor

    model = RedNet(26, zero_init_residual=False).eval()
    x = torch.rand(1, 3, 65, 64)
    features = create_feature_extractor(model, ['layer2', 'layer4'])(x)
    expected = RedNet.forward(model, x)
    torch.testing.assert_close(features['layer4'], expected[0])
    assert features['layer2'].shape == (1, 512, 9, 8)


def test_torch_jit_traces_for_a_fresh_process(tmp_path):
    model = RedNet(26, zero_init_residual=False).eval()
    x = torch.rand(1, 3, 64, 64)
    # The trace records gradients, as by default. Its own check does not.
    torch.jit.trace(model, x).save(str(tmp_path / 'traced.pt'))
    torch.save((x, model(x)[0].detach()), tmp_path / 'expected.pt')
    run_python(
        'import torch, mmrednet.ops\n'
        f'x, expected = torch.load({str(tmp_path / "expected.pt")!r})\n'
        f'torch.testing.assert_close(torch.jit.load({str(tmp_path / "traced.pt")!r})(x)[0], expected)',
        'import torch',
    )


def test_group_norm_everywhere_as_in_resnet():
    model = RedNet(26, norm_cfg=dict(type='GN', num_groups=32))
    assert model(torch.rand(1, 3, 64, 64))[0].shape == (1, 2048, 2, 2)


@pytest.mark.full
@pytest.mark.parametrize('training', (False, True))
def test_torch_compile_serves_all_sizes_that_the_strides_divide(training):
    """For other sizes PyTorch's max pooling makes torch compile again for each parity."""
    torch._dynamo.reset()
    model = RedNet(26, zero_init_residual=False).train(training)
    counter = torch._dynamo.testing.CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for size in ((64, 96), (128, 64), (96, 160)):
        x = torch.rand(2, 3, *size)
        with torch.set_grad_enabled(training):
            torch.testing.assert_close(compiled(x), model(x))
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] == counts[2]
