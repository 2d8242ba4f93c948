"""Features of mmengine and mmcv, in two training steps of a classifier."""

import copy

import torch
from helpers import registry
from mmengine.config import Config
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope
from mmengine.visualization import Visualizer
from test_compatibility.rows import SHALLOW, Network, rows_of
from test_compatibility.tasks import runner, save_start, task
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

row = rows_of('Training with mmengine', tier='full')

NORM_OPTIONS = dict(affine=False, track_running_stats=False, momentum=None)


def train(config):
    """Trains, and holds that every weight that may move has moved and is finite."""
    run = runner(config)
    run.train()
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())
    return run


def start_and_end(network, **changes):
    """Trains from known weights; returns the state before and after."""
    path = save_start(network, 'mmpretrain')
    run = train(task(network, 'mmpretrain', load_from=path, **changes))
    return torch.load(path)['state_dict'], run.model.state_dict(), run


def assert_same_steps(network, **changes):
    """Holds that a feature changes how a step is computed and not what it is."""
    ends = [start_and_end(network, **options)[1] for options in ({}, changes)]
    for name, value in ends[0].items():
        assert (ends[1][name] - value).abs().max() < 1e-3 * value.abs().max() + 1e-6, name


@row
def trains(network: Network):
    """`Runner.train()`: two steps, a test and a checkpoint"""
    start, end, _ = start_and_end(network)
    assert not any(torch.equal(start[name], value) for name, value in end.items() if name.endswith('conv1.weight'))
    assert (network.folder / 'iter_2.pth').is_file()


@row
def resumes(network: Network):
    """`resume=True`: training continues with the same weights"""
    train(task(network, 'mmpretrain', default_hooks__checkpoint__interval=1, train_cfg__max_iters=1))
    run = train(task(network, 'mmpretrain', resume=True))
    assert run.iter == 2


@row
def load_from(network: Network):
    """`load_from`, then `Runner.test()`"""
    metrics = runner(task(network, 'mmpretrain', load_from=save_start(network, 'mmpretrain'))).test()
    assert 0 <= metrics['accuracy/top1'] <= 100


@row
def accumulates(network: Network):
    """Gradient accumulation (`accumulative_counts=2`): one step every two iterations"""
    start, end, run = start_and_end(
        network, optim_wrapper__accumulative_counts=2, default_hooks__checkpoint__interval=1
    )
    steps = [state['step'] for state in run.optim_wrapper.optimizer.state.values() if 'step' in state]
    once = torch.load(network.folder / 'iter_1.pth')['state_dict']
    name = 'backbone.layer2.0.conv1.weight'
    assert torch.equal(once[name], start[name]) and not torch.equal(end[name], start[name]) and not steps


@row
def amp(network: Network):
    """`AmpOptimWrapper(dtype='bfloat16')` without a GPU"""
    train(task(network, 'mmpretrain', optim_wrapper__type='AmpOptimWrapper', optim_wrapper__dtype='bfloat16'))


@row
def clips(network: Network):
    """`clip_grad` by norm and by value"""
    for clip_grad in (dict(max_norm=0.1), dict(type='value', clip_value=0.01)):
        train(task(network, 'mmpretrain', optim_wrapper__clip_grad=clip_grad))


@row
def ema(network: Network):
    """`EMAHook`: a resumed run continues with the averaged weights"""
    hooks = [dict(type='EMAHook', momentum=0.5)]
    options = dict(custom_hooks=hooks, default_hooks__checkpoint__interval=1)
    train(task(network, 'mmpretrain', train_cfg__max_iters=1, **options))
    run = train(task(network, 'mmpretrain', resume=True, **options))
    averaged = [hook for hook in run.hooks if type(hook).__name__ == 'EMAHook'][0].ema_model
    assert averaged.steps == 2
    first, last = (torch.load(network.folder / f'iter_{i}.pth') for i in (1, 2))
    name = 'backbone.layer2.0.conv1.weight'
    # mmengine saves the averaged weights as state_dict, the trained ones as ema_state_dict.
    expected = (first['state_dict'][name] + last['ema_state_dict'][f'module.{name}']) / 2
    assert_close(last['state_dict'][name], expected)


@row
def with_cp(network: Network):
    """`with_cp=True` in the backbone: the same steps"""
    ends = []
    path = save_start(network, 'mmpretrain')
    for flag in (False, True):
        config = task(network, 'mmpretrain', dict(with_cp=flag), load_from=path)
        ends.append(train(config).model.state_dict())
    for name, value in ends[0].items():
        if 'num_batches' not in name and 'running' not in name:
            assert_close(ends[1][name], value, rtol=1e-3, atol=1e-5)


@row
def activation_checkpointing(network: Network):
    """`activation_checkpointing=['backbone.layer1', ...]`"""
    train(task(network, 'mmpretrain', activation_checkpointing=['backbone.layer1', 'backbone.layer2']))


@row
def efficient_conv_bn_eval(network: Network):
    """`efficient_conv_bn_eval=['backbone']` with `norm_eval=True`: the same steps"""
    ends = []
    path = save_start(network, 'mmpretrain')
    for options in ({}, dict(efficient_conv_bn_eval=['backbone'])):
        backbone = dict(norm_eval=True, init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.'))
        ends.append(train(task(network, 'mmpretrain', backbone, **options)).model.state_dict())
    for name, value in ends[0].items():
        assert (ends[1][name] - value).abs().max() <= 1e-2 * value.abs().max() + 1e-5, name


@row
def compiles(network: Network):
    """`compile=dict(backend='eager')`: the same steps"""
    torch._dynamo.reset()
    assert_same_steps(network, compile=dict(backend='eager'))
    torch._dynamo.reset()


@row
def flexible(network: Network):
    """`FlexibleRunner` with `SingleDeviceStrategy`"""
    from mmengine.runner._flexible_runner import FlexibleRunner

    config = task(network, 'mmpretrain')
    config.experiment_name = f'flexible-{network.name}'
    config.strategy = dict(type='SingleDeviceStrategy')
    init_default_scope('mmpretrain')
    run = FlexibleRunner.from_cfg(config)
    run.train()
    assert (network.folder / 'iter_2.pth').is_file()


@row
def pretrained(network: Network):
    """`init_cfg=dict(type='Pretrained', prefix='backbone.')` with `frozen_stages=1` and `norm_eval=True`"""
    path = save_start(network, 'mmpretrain')
    init_cfg = dict(type='Pretrained', checkpoint=path, prefix='backbone.')
    backbone = dict(frozen_stages=1, norm_eval=True, init_cfg=init_cfg)
    run = train(task(network, 'mmpretrain', backbone))
    start, end = torch.load(path)['state_dict'], run.model.state_dict()
    for name in start:
        frozen = name.startswith(('backbone.stem', 'backbone.conv1', 'backbone.layer1.')) or 'running' in name
        if name.startswith('backbone.') and (frozen or name.endswith('0.conv1.weight')):
            assert torch.equal(start[name], end[name]) == frozen, name


@row
def init_list(network: Network):
    """A list as `init_cfg`, and `init_weights()` twice"""
    model = network.build(
        init_cfg=[dict(type='Constant', val=2, layer='Conv2d'), dict(type='Constant', val=3, layer='_BatchNorm')]
    )
    for _ in range(2):
        model.init_weights()
        assert (model.layer1[0].conv1.weight == 2).all() and (model.layer1[0].bn1.weight == 3).all()


@row
def group_norm(network: Network):
    """`norm_cfg=dict(type='GN', num_groups=8)`"""
    train(task(network, 'mmpretrain', dict(norm_cfg=dict(type='GN', num_groups=8))))


@row
def other_norms(network: Network):
    """`norm_cfg` of other kinds: IN, LN2d, BN without weights, without statistics, without momentum"""
    kinds = [dict(type='IN'), dict(type='LN2d')]
    kinds += [dict(type='BN', **{name: value}) for name, value in NORM_OPTIONS.items()]
    for norm_cfg in kinds:
        model = network.build(training=True, norm_cfg=norm_cfg, **SHALLOW)
        model.init_weights()
        model(network.image())[0].square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@row
def sync_norm(network: Network):
    """`sync_bn='torch'` in a single process"""
    train(task(network, 'mmpretrain', sync_bn='torch'))


@row
def frozen_norm(network: Network):
    """`norm_cfg=dict(type='BN', requires_grad=False)`"""
    model = network.build(norm_cfg=dict(type='BN', requires_grad=False))
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert norms and not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())


@row
def fuses(network: Network):
    """mmcv's `fuse_conv_bn`, which benchmarks and FLOP counters call: the same outputs"""
    from mmcv.cnn.utils.fuse_conv_bn import fuse_conv_bn

    model = network.build()
    for _ in range(2):
        model.train()
        with torch.no_grad():
            model(network.image())
    model.eval()
    fused = fuse_conv_bn(copy.deepcopy(model))
    with torch.no_grad():
        assert_close(fused(network.image())[0], model(network.image())[0], rtol=1e-3, atol=1e-4)


row = rows_of('Optimizer constructors')


def groups(network, scope='mmpretrain', constructor='DefaultOptimWrapperConstructor', **paramwise_cfg):
    """Returns the optimizer's group of each parameter."""
    # mmpretrain's ResNet has layers for its whole depth only.
    stages = dict(num_stages=4, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), out_indices=(3,))
    config = task(network, scope, stages if scope == 'mmpretrain' else None)
    model = registry(scope).build(config.model)
    build = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type=constructor,
            optim_wrapper_cfg=dict(optimizer=dict(type='SGD', lr=1.0, weight_decay=1.0)),
            paramwise_cfg=paramwise_cfg,
        )
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in build(model).optimizer.param_groups:
        found.update({names[id(parameter)]: group for parameter in group['params']})
    assert len(found) == len(names)
    return model, found


@row
def custom_keys(network: Network):
    """`paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1)})`"""
    _, found = groups(network, custom_keys={'backbone': dict(lr_mult=0.1), 'backbone.layer1': dict(lr_mult=0.01)})
    for name, group in found.items():
        expected = 0.01 if name.startswith('backbone.layer1') else 0.1 if name.startswith('backbone') else 1
        assert group['lr'] == expected, name


@row
def no_decay(network: Network):
    """`norm_decay_mult=0`, `bias_decay_mult=0` and `flat_decay_mult=0`"""
    for option in ('norm_decay_mult', 'bias_decay_mult', 'flat_decay_mult'):
        model, found = groups(network, **{option: 0.0})
        norms = {
            f'{name}.{kind}'
            for name, m in model.named_modules()
            if isinstance(m, _BatchNorm)
            for kind in ('weight', 'bias')
        }
        for name, group in found.items():
            flat = model.get_parameter(name).ndim == 1
            spared = {'norm_decay_mult': name in norms, 'bias_decay_mult': name.endswith('bias')}
            assert (group['weight_decay'] == 0) == spared.get(option, flat), (option, name)


@row
def layer_decay_mmpretrain(network: Network):
    """mmpretrain's `LearningRateDecayOptimWrapperConstructor`"""
    groups(network, constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor', layer_decay_rate=0.5)


@row
def layer_decay_mmdet(network: Network):
    """mmdet's `LearningRateDecayOptimizerConstructor`, by layers"""
    constructor = 'mmdet.LearningRateDecayOptimizerConstructor'
    groups(network, 'mmdet', constructor, decay_rate=0.9, decay_type='layer_wise', num_layers=12)


@row
def layer_decay_mmseg(network: Network):
    """mmseg's `LearningRateDecayOptimizerConstructor`, by stages"""
    constructor = 'mmseg.LearningRateDecayOptimizerConstructor'
    groups(network, 'mmseg', constructor, decay_rate=0.9, decay_type='stage_wise', num_layers=12)


row = rows_of('Hooks', tier='full')


@row
def save_best(network: Network):
    """`CheckpointHook(save_best='auto')`, and a test of the saved checkpoint, also for a segmentor"""
    hook = dict(type='CheckpointHook', by_epoch=False, interval=1, save_best='auto', rule='greater', max_keep_ckpts=1)
    for scope in ('mmpretrain', 'mmseg'):  # whose metrics are numbers of Python and of NumPy
        train(task(network, scope, default_hooks__checkpoint=hook))
        (best,) = network.folder.glob('best_*.pth')
        runner(task(network, scope, load_from=str(best))).test()
        best.unlink()


@row
def early_stopping(network: Network):
    """`EarlyStoppingHook`"""
    hook = dict(type='EarlyStoppingHook', monitor='accuracy/top1', patience=1, min_delta=1000)
    config = task(network, 'mmpretrain', custom_hooks=[hook], train_cfg__val_interval=1, train_cfg__max_iters=6)
    assert train(config).iter < 6


@row
def profiler(network: Network):
    """`ProfilerHook`"""
    hook = dict(type='ProfilerHook', by_epoch=False, profile_times=1, json_trace_path=f'{network.folder}/trace.json')
    train(task(network, 'mmpretrain', custom_hooks=[hook]))
    assert 'onvolution' in (network.folder / 'trace.json').read_text()


@row
def precise_bn(network: Network):
    """mmpretrain's `PreciseBNHook`"""
    hook = dict(type='PreciseBNHook', num_samples=4, interval=1)
    config = task(network, 'mmpretrain', custom_hooks=[hook])
    config.train_cfg = dict(by_epoch=True, max_epochs=1)
    config.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=False)
    train(config)


@row
def switch_recipe(network: Network):
    """mmpretrain's `SwitchRecipeHook`, which starts with mixup"""
    hook = dict(
        type='SwitchRecipeHook',
        schedule=[dict(action_epoch=1, batch_augments=dict(augments='Mixup')), dict(action_epoch=2)],
    )
    train(task(network, 'mmpretrain', custom_hooks=[hook]))


@row
def class_checks(network: Network):
    """mmdet's `NumClassCheckHook`, in training"""
    train(task(network, 'mmdet', custom_hooks=[dict(type='NumClassCheckHook')], default_hooks__checkpoint__interval=9))


@row
def visualization(network: Network):
    """mmdet's `DetVisualizationHook`, in a test"""
    Visualizer._instance_dict.clear()  # of several, mmengine takes the one whose name came last: another test's
    hook = dict(type='DetVisualizationHook', draw=True, interval=1, test_out_dir='drawn')
    runner(task(network, 'mmdet', default_hooks__visualization=hook, load_from=save_start(network, 'mmdet'))).test()
    assert list(network.folder.rglob('drawn/*'))


@row
def check_loss(network: Network):
    """mmdet's `CheckInvalidLossHook` and `SyncNormHook`"""
    names = ('CheckInvalidLossHook', 'SyncNormHook')
    train(task(network, 'mmdet', custom_hooks=[dict(type=name) for name in names]))


row = rows_of('Configs and files', tier='full')

BASE = """
from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead, ResNet

model = dict(
    type=ImageClassifier,
    backbone=dict(type=ResNet, depth=101),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=3, in_channels=512),
)
"""
CHILD = """
from mmengine.config import read_base

with read_base():
    from .base import *

from {module} import {name}

model.merge(dict(backbone=dict(_delete_=True, type={name}, depth=50, base_channels=16, stem_channels=32)))
"""


@row
def new_style(network: Network):
    """A new-style config with `read_base()` and classes instead of names: loaded, dumped and loaded again"""
    name = network.config()['type'].split('.')[-1]
    module = 'mmrednet.models' if name == 'RedNet' else 'mmpretrain.models'
    (network.folder / 'base.py').write_text(BASE)
    (network.folder / 'child.py').write_text(CHILD.format(module=module, name=name))
    config = Config.fromfile(network.folder / 'child.py')
    config.dump(network.folder / 'dumped.py')
    for cfg in (config, Config.fromfile(network.folder / 'dumped.py')):
        model = registry('mmpretrain').build(cfg.model)
        assert type(model.backbone).__name__ == name and model.backbone.depth == 50


@row
def every_scope(network: Network):
    """The backbone in a config of each toolbox: mmpretrain, mmdet and mmseg"""
    for scope in ('mmpretrain', 'mmdet', 'mmseg'):
        assert [out.shape[1] for out in network.build(scope=scope, out_indices=(1, 3))(network.image())] == [128, 512]


@row
def file_client(network: Network):
    """`backend_args` with a path mapping: images and annotations come from the storage client, without a folder"""
    _client(network, 'Runner')


def _client(network, runner_type):
    from mmengine.fileio import LocalBackend, register_backend
    from mmengine.registry import RUNNERS

    asked = []

    class Mapped(LocalBackend):
        """As an object store with a path mapping."""

        def __init__(self, path_mapping):
            self.path_mapping = path_mapping

        def _map(self, path):
            asked.append(str(path))
            for old, new in self.path_mapping.items():
                path = str(path).replace(old, new, 1)
            return path

        def get(self, path):
            return super().get(self._map(path))

        def get_text(self, path, encoding='utf-8'):
            return super().get_text(self._map(path), encoding)

        def exists(self, path):
            return super().exists(self._map(path))

        def isdir(self, path):
            return super().isdir(self._map(path))

        def isfile(self, path):
            return super().isfile(self._map(path))

        def get_local_path(self, path):
            return super().get_local_path(self._map(path))

    # mmengine keeps the client of a name.
    backend = f'mapped{network.name}{runner_type}'
    register_backend(backend, Mapped)
    backend_args = dict(backend=backend, path_mapping={'no/such/folder/': f'{network.data}/'})
    config = task(network, 'mmdet', runner_type=runner_type)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.dataset.update(data_root='no/such/folder/', backend_args=backend_args)
        for step in loader.dataset.pipeline:
            if step['type'].startswith('Load'):
                step['backend_args'] = backend_args
    for evaluator in (config.val_evaluator, config.test_evaluator):
        evaluator.update(ann_file='no/such/folder/annotations/instances_val2017.json', backend_args=backend_args)
    init_default_scope('mmdet')
    config.experiment_name = f'client-{network.name}-{runner_type}'
    RUNNERS.get(runner_type).from_cfg(config).train()
    assert any('train2017/' in path for path in asked) and any(path.endswith('.json') for path in asked)


@row
def file_client_here(network: Network):
    """The same with `runner_type='mmrednet.Runner'`"""
    _client(network, 'mmrednet.Runner')


@row
def complexity(network: Network):
    """`mmengine.analysis.get_model_complexity_info`"""
    from mmengine.analysis import get_model_complexity_info

    info = get_model_complexity_info(network.build(), (3, 64, 64), show_arch=True, show_table=True)
    assert info['flops'] > 0 and info['params'] > 0
