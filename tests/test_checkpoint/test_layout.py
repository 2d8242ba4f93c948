"""Checkpoints in the old layouts: composed of the released names and, around them, those of the old toolboxes."""

import json
from collections import OrderedDict
from pickle import UnpicklingError

import numpy as np
import pytest
import torch
from helpers import DATA, RELEASED, ROOT, registry
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel, BaseTTAModel
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner as MMEngineRunner
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import DataLoader

from mmrednet.__main__ import main
from mmrednet.checkpoint import check, convert, load
from mmrednet.checkpoint.layout import widen
from mmrednet.engine import LoadCheckpointHook, Runner
from mmrednet.layers import Involution
from mmrednet.models.rednet import RedNet

# The parameters around the backbone in mmcls 0.25.0, mmdet 2.28.2 and mmseg 0.30.0. They are the same in the versions
# of early 2021 (0.10.0, 2.11.0 and 0.12.0).
OLD = json.loads((DATA / 'old_toolbox_keys.json').read_text())

BACKBONE, NECK, RPN, MASK = (
    ('rednet50_dense_backbone', 'backbone.'),
    ('fpn_involution_neck', 'neck.'),
    ('rpn_head_involution', 'rpn_head.rpn_conv.'),
    ('fcn_mask_head_involution', 'roi_head.mask_head.convs.'),
)
# The config, the old toolbox's model, and the released names that replace parts of it.
CASES = {
    'mmpretrain/rednet26': ('classifier', ('rednet26_imagenet', 'head.')),
    'mmpretrain/rednet50': ('classifier', ('rednet50_imagenet', 'head.')),
    'mmdet/retinanet_rednet50_fpn': ('retinanet', BACKBONE),
    'mmdet/retinanet_rednet50_invfpn': ('retinanet', BACKBONE, ('fpn_involution_neck_retinanet', 'neck.')),
    'mmdet/faster_rcnn_rednet50_fpn': ('faster_rcnn', BACKBONE),
    'mmdet/faster_rcnn_rednet50_invfpn': ('faster_rcnn', BACKBONE, NECK),
    'mmdet/faster_rcnn_rednet50_invfpn_invhead': ('faster_rcnn', BACKBONE, NECK, RPN),
    'mmdet/mask_rcnn_rednet50_fpn': ('mask_rcnn', BACKBONE),
    'mmdet/mask_rcnn_rednet50_invfpn': ('mask_rcnn', BACKBONE, NECK),
    'mmdet/mask_rcnn_rednet50_invfpn_invhead': ('mask_rcnn', BACKBONE, NECK, RPN, MASK),
    'mmseg/semantic_fpn_rednet50_fpn': ('semantic_fpn', BACKBONE),
    'mmseg/semantic_fpn_rednet50_invfpn': ('semantic_fpn', BACKBONE, NECK),
    'mmseg/upernet_rednet50': ('upernet', BACKBONE),
}
ONE_OF_EACH = ('mmpretrain/rednet26', 'mmdet/mask_rcnn_rednet50_invfpn_invhead', 'mmseg/semantic_fpn_rednet50_invfpn')
# The entries that their training tools wrote into `meta`.
META = dict(
    env_info='sys.platform: linux',
    config='model = dict()\n',
    seed=0,
    epoch=12,
    iter=87960,
    mmcv_version='1.3.0',
    time='Thu Apr  1 00:00:00 2021',
    hook_msgs=dict(last_ckpt='epoch_12.pth'),
    CLASSES=('person', 'bicycle'),
    PALETTE=[[128, 64, 128], [244, 35, 232]],
)


def old_checkpoint(name):
    old, *released = CASES[name]
    shapes = {key: shape for key, shape in OLD[old].items() if not key.startswith(tuple(p for _, p in released))}
    for part, _ in released:
        shapes.update(RELEASED[part])
    # One number each, which makes the files small.
    state_dict = OrderedDict(
        (key, torch.tensor(i, dtype=torch.long if key.endswith('tracked') else torch.float).expand(shape))
        for i, (key, shape) in enumerate(shapes.items(), 1)
    )
    return dict(meta=dict(META), state_dict=state_dict, optimizer=dict(state={}, param_groups=[dict(lr=0.02)]))


@pytest.fixture
def save(tmp_path):
    def save(checkpoint, name='old.pth'):
        torch.save(checkpoint, tmp_path / name)
        return str(tmp_path / name)

    return save


def build(name, device='cpu'):
    with torch.device(device):
        return registry(name.partition('/')[0]).build(Config.fromfile(ROOT / f'configs/{name}.py').model)


def build_runner(name, load_from, tmp_path):
    """Builds the runner that `mim test` builds: mmseg's does not look at runner_type."""
    scope = name.partition('/')[0]
    config = Config.fromfile(ROOT / f'configs/{name}.py')
    kept = ('model', 'default_scope', 'default_hooks', 'runner_type', 'env_cfg')
    config = Config({key: config[key] for key in kept})
    config.update(work_dir=str(tmp_path), load_from=load_from, experiment_name=tmp_path.name)
    init_default_scope(scope)
    return MMEngineRunner.from_cfg(config) if scope == 'mmseg' else RUNNERS.build(config)


def assert_holds(model, state_dict):
    for key, value in model.state_dict().items():
        assert torch.equal(value, state_dict[key]), key


@pytest.mark.parametrize('name', CASES)
def test_names_and_shapes_of_old_checkpoints_are_ours(name):
    checkpoint = old_checkpoint(name)
    model = build(name, 'meta')
    converted, renamed = convert(checkpoint)
    matching = check(model, converted['state_dict'], 'old.pth', '')
    assert matching.keys() == model.state_dict().keys() == checkpoint['state_dict'].keys()
    assert set(renamed) == {'meta.CLASSES', 'meta.PALETTE'}


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_runner_takes_old_checkpoints(name, save, tmp_path):
    checkpoint = old_checkpoint(name)
    runner = build_runner(name, save(checkpoint), tmp_path)
    runner.load_or_resume()
    assert_holds(runner.model, checkpoint['state_dict'])


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_mmengine_takes_old_checkpoints(name, save):
    checkpoint = old_checkpoint(name)
    model = build(name)
    load_checkpoint(model, save(checkpoint), strict=True)
    assert_holds(model, checkpoint['state_dict'])


def spoil(state_dict, what):
    """Spoils a checkpoint and returns the key and what an error should call it."""
    key = next(key for key in state_dict if key.endswith('layer4.0.conv2.conv2.conv.weight'))
    if what == 'missing':
        del state_dict[key]
    elif what == 'unexpected':
        key += '_extra'
        state_dict[key] = torch.zeros(1)
    else:
        state_dict[key] = state_dict[key][:-1]
    return key


PROBLEMS = ('missing', 'unexpected', 'of another shape')


def assert_told_apart(error, what, key):
    text = str(error.value)
    assert 'old.pth' in text and 'nothing' in text
    assert [problem for problem in PROBLEMS if f'1 {problem}' in text] == [what] and f': {key}' in text
    assert text.count('layer4') == 1
    if what == 'of another shape':
        assert '(1567, 128, 1, 1) and should be (1568, 128, 1, 1)' in text


@pytest.mark.parametrize(('name', 'what'), zip(ONE_OF_EACH, PROBLEMS, strict=True))
def test_runner_tells_problems_apart_and_loads_nothing(name, what, save, tmp_path):
    checkpoint = old_checkpoint(name)
    key = spoil(checkpoint['state_dict'], what)
    runner = build_runner(name, save(checkpoint), tmp_path)
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    with pytest.raises(ValueError, match="config's model") as error:
        runner.load_or_resume()
    assert_told_apart(error, what, key)
    assert_holds(runner.model, before)


def pretrained(path, depth=26, prefix='backbone.', **options):
    return RedNet(depth, init_cfg=dict(type='Pretrained', checkpoint=path, prefix=prefix), **options)


@pytest.mark.parametrize('what', PROBLEMS)
def test_init_cfg_tells_problems_apart_and_loads_nothing(what, save):
    checkpoint = old_checkpoint('mmpretrain/rednet26')
    key = spoil(checkpoint['state_dict'], what)
    model = pretrained(save(checkpoint))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match='stem_kernel_size') as error:
        model.init_weights()
    assert_told_apart(error, what, key.removeprefix('backbone.'))
    assert_holds(model, before)


@pytest.mark.parametrize(
    ('old', 'new', 'fits'), ((3, (3, 5), True), (2, (5, 5), False), (3, (4, 4), False), (5, (3, 7), False))
)
def test_only_odd_windows_are_widened_to_odd_ones(old, new, fits):
    state_dict = OrderedDict({'conv2.conv.weight': torch.rand(old * old, 4, 1, 1)})
    widened = widen(Involution(16, new, padding=1), state_dict, 'a.pth')['conv2.conv.weight']
    assert len(widened) == (new[0] * new[1] if fits else old * old)


def test_init_cfg_takes_a_part_where_the_rest_may_differ(save):
    checkpoint = old_checkpoint('mmpretrain/rednet26')
    path = save(checkpoint)
    with pytest.raises(ValueError, match=r'1 of another shape: stem.0.conv.weight.*\n.*may_differ'):
        pretrained(path, in_channels=4).init_weights()
    model = RedNet(
        26,
        in_channels=4,
        init_cfg=[
            dict(type='Constant', val=2.0, layer='Conv2d'),
            dict(type='Pretrained', checkpoint=path, prefix='backbone.', may_differ=['stem.0.conv.']),
        ],
    )
    model.init_weights()
    assert (model.stem[0].conv.weight == 2).all()
    assert torch.equal(model.layer1[0].conv1.weight, checkpoint['state_dict']['backbone.layer1.0.conv1.weight'])


def test_init_cfg_takes_the_prefix_of_data_parallel(save):
    checkpoint = old_checkpoint('mmpretrain/rednet26')
    state_dict = checkpoint['state_dict']
    checkpoint['state_dict'] = OrderedDict((f'module.{name}', value) for name, value in state_dict.items())
    for prefix in ('module.backbone.', 'module.backbone', 'backbone.'):
        model = pretrained(save(checkpoint), prefix=prefix)
        model.init_weights()
        assert torch.equal(model.layer1[0].conv1.weight, state_dict['backbone.layer1.0.conv1.weight'])


def test_init_cfg_names_what_is_wrong_with_another_checkpoint(save):
    dense = save(old_checkpoint('mmdet/retinanet_rednet50_fpn'), 'dense.pth')
    with pytest.raises(
        ValueError, match=r'  2 of another shape: stem.1.conv2.conv.weight is \(98, 8, 1, 1\) and'
    ) as error:
        pretrained(dense, depth=50).init_weights()
    assert 'missing' not in str(error.value) and 'unexpected' not in str(error.value)
    path = save(old_checkpoint('mmpretrain/rednet26'))
    absent = RELEASED['rednet50_imagenet'].keys() - RELEASED['rednet26_imagenet'].keys()
    number = sum(not key.endswith('num_batches_tracked') for key in absent)
    with pytest.raises(ValueError, match=rf'  {number} missing.*: layer1.1.conv1.weight, .*, \.\.\.') as error:
        pretrained(path, depth=50).init_weights()
    assert 'unexpected' not in str(error.value) and 'of another shape' not in str(error.value)
    with pytest.raises(ValueError, match="unexpected.*backbone.stem.0.conv.weight(.|\n)*'backbone.'"):
        pretrained(path, prefix='').init_weights()


@pytest.mark.parametrize('prefix', ('', 'backbone.', 'module.backbone.', 'detector.backbone.'))
def test_init_cfg_finds_the_prefix_and_needs_no_type(prefix, save):
    released = old_checkpoint('mmpretrain/rednet26')['state_dict']
    backbone = {name.removeprefix('backbone.'): v for name, v in released.items() if name.startswith('backbone.')}
    path = save({prefix + name: value for name, value in backbone.items()})
    model = RedNet(26, init_cfg=dict(checkpoint=path))
    model.init_weights()
    assert_holds(model, backbone)


def test_init_cfg_lists_the_prefixes_where_there_are_several(save):
    model = RedNet(26, base_channels=16, stem_channels=32)
    path = save({f'{prefix}.{name}': v for prefix in ('student', 'teacher') for name, v in model.state_dict().items()})
    init_cfg = dict(checkpoint=path)
    with pytest.raises(ValueError, match=r"several backbones.*prefix.*\['student.', 'teacher.'\]"):
        RedNet(26, base_channels=16, stem_channels=32, init_cfg=init_cfg).init_weights()
    RedNet(26, base_channels=16, stem_channels=32, init_cfg=dict(init_cfg, prefix='teacher')).init_weights()


@pytest.mark.parametrize('prefix', ('backbone', 'backbone.'))
def test_init_cfg_takes_the_stages_that_are_built(prefix, save):
    checkpoint = old_checkpoint('mmpretrain/rednet26')
    model = pretrained(save(checkpoint), num_stages=3, out_indices=(2,), prefix=prefix)
    model.init_weights()
    assert_holds(model, {key.removeprefix('backbone.'): value for key, value in checkpoint['state_dict'].items()})


def test_a_wrapped_model_without_counters_and_without_meta(save):
    """DataParallel's prefix, the norm layers of PyTorch before 0.4.1, and parameters alone."""
    full = old_checkpoint('mmpretrain/rednet26')['state_dict']
    state_dict = {'module.' + key: value for key, value in full.items() if not key.endswith('num_batches_tracked')}
    converted, renamed = convert(state_dict)
    assert converted['meta'] == {} and renamed['state_dict.module.head.fc.weight'] == 'state_dict.head.fc.weight'
    assert list(converted['state_dict']) == [key.removeprefix('module.') for key in state_dict]
    model = pretrained(save(state_dict))
    model.init_weights()
    assert torch.equal(model.layer4[0].bn3.weight, full['backbone.layer4.0.bn3.weight'])


@pytest.mark.parametrize('checkpoint', (dict(state_dict=[1]), {0: torch.zeros(1)}))
def test_what_is_no_checkpoint_is_refused(checkpoint):
    with pytest.raises(ValueError, match='by name.*give'):
        convert(checkpoint)


class Model(BaseModel):
    """One layer and a classifier."""

    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.head = nn.Linear(2, classes)

    def forward(self, x, mode='loss'):
        y = self.head(self.layer(x)).mean()
        return dict(loss=y) if mode == 'loss' else [BaseDataElement()]


def tiny_runner(tmp_path, load_from, classes=3, runner=Runner, wrap=lambda model: model, **options):
    data = DataLoader([dict(x=torch.rand(2))] * 2)
    tested = dict(test_dataloader=data, test_cfg=dict(), test_evaluator=Evaluator([]))
    trained = dict(
        train_dataloader=data,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
    )
    init_default_scope('mmengine')
    model = wrap(Model(classes))
    options = {**tested, **trained, **options}
    return runner(model, str(tmp_path), load_from=load_from, experiment_name=f'{tmp_path.name}{id(model)}', **options)


def test_other_classes_need_may_differ(save, tmp_path):
    checkpoint = dict(state_dict=Model(5).state_dict())
    path = save(checkpoint)
    with pytest.raises(
        ValueError, match=r'2 of another shape: head.weight is \(5, 2\) and(.|\n)*load_checkpoint.may_differ'
    ):
        tiny_runner(tmp_path, path).train()
    hooks = dict(load_checkpoint=dict(may_differ=['head.']))
    runner = tiny_runner(tmp_path, path, default_hooks=hooks)
    before = runner.model.head.weight.clone()
    runner.train()
    assert torch.equal(runner.model.layer.weight, checkpoint['state_dict']['layer.weight'])
    assert torch.equal(runner.model.head.weight, before)
    # Neither testing nor resuming starts from initial values.
    with pytest.raises(ValueError, match='2 of another shape: head.weight') as error:
        tiny_runner(tmp_path, path, default_hooks=hooks).test()
    assert 'may_differ' not in str(error.value)
    with pytest.raises(ValueError, match='2 of another shape: head.weight'):
        tiny_runner(tmp_path, str(tmp_path / 'epoch_1.pth'), classes=5, resume=True, default_hooks=hooks).train()
    # Its own checkpoint fits.
    tiny_runner(tmp_path, str(tmp_path / 'epoch_1.pth'), default_hooks=hooks).test()


class Renaming(nn.Module):
    """Loads the checkpoint of a single layer, as a teacher with a student does, and has a state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = nn.Linear(2, 3), nn.Linear(2, 3)
        self.saved = ['nothing']

    def get_extra_state(self):
        return self.saved

    def set_extra_state(self, state):
        self.saved = state

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in ('weight', 'bias'):
            if (value := state_dict.pop(prefix + name, None)) is not None:
                state_dict[f'{prefix}student.{name}'] = state_dict[f'{prefix}teacher.{name}'] = value
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_names_are_compared_as_the_model_itself_changes_them():
    model, single = nn.Sequential(Renaming()), nn.Sequential(nn.Linear(2, 3))
    before = {key: value.clone() for key, value in model.named_parameters()}
    state_dict = OrderedDict(single.state_dict(), **{'0._extra_state': ['something']})
    checked = check(model, state_dict, 'a.pth', '')
    assert checked.keys() == model.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in model.named_parameters())
    model.load_state_dict(checked)
    assert torch.equal(model[0].teacher.weight, single[0].weight) and model[0].saved == ['something']
    state_dict['0.more'] = torch.ones(1)
    with pytest.raises(ValueError, match='1 unexpected.*: 0.more'):
        check(model, state_dict, 'a.pth', '')


def test_the_hook_may_be_left_out_or_built(save, tmp_path):
    path = save(Model(5).state_dict())
    tiny_runner(tmp_path, path, default_hooks=dict(load_checkpoint=None)).test()  # mmengine warns, and loads what fits
    tiny_runner(tmp_path, path, default_hooks=dict(load_checkpoint=LoadCheckpointHook(['head.']))).train()


def test_an_old_checkpoint_cannot_be_resumed(save, tmp_path):
    path = save(dict(meta=dict(META), state_dict=Model(3).state_dict(), optimizer={}))
    with pytest.raises(ValueError, match='old.pth cannot be resumed.*load_from'):
        tiny_runner(tmp_path, path, resume=True).train()


def test_the_hook_works_with_the_runner_of_mmengine(save, tmp_path):
    path = save(Model(5).state_dict())
    hooks = [dict(type='mmrednet.LoadCheckpointHook')]
    with pytest.raises(ValueError, match='2 of another shape'):
        tiny_runner(tmp_path, path, runner=MMEngineRunner, custom_hooks=hooks).test()


class Augmented(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return data_samples_list


def test_test_time_augmentation(save, tmp_path):
    state_dict = Model(3).state_dict()
    runner = tiny_runner(tmp_path, save({f'module.{k}': v for k, v in state_dict.items()}), wrap=Augmented)
    runner.load_or_resume()
    assert_holds(runner.model.module, state_dict)


@pytest.mark.parametrize('core', (b'numpy.core', b'numpy._core'))
def test_numpy_objects_of_either_version_load_safely(core, tmp_path):
    """mmseg 0.x saved best_score as a NumPy scalar, and an array as the palette of a data set without its own."""
    meta = dict(hook_msgs=dict(best_score=np.float64(0.25)), PALETTE=np.arange(6).reshape(2, 3))
    path = tmp_path / 'old.pth'
    torch.save(dict(meta=meta), path, _use_new_zipfile_serialization=False)
    saved = path.read_bytes()
    assert b'numpy._core' in saved or b'numpy.core' in saved
    path.write_bytes(saved.replace(b'numpy._core', b'numpy.core').replace(b'numpy.core', core))
    loaded = torch.load(path, weights_only=True)['meta']
    assert loaded['hook_msgs']['best_score'] == 0.25 and loaded['PALETTE'].tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(path.read_bytes().replace(b'_reconstruct', b'fromfile'))
    with pytest.raises(UnpicklingError):
        torch.load(path, weights_only=True)


def test_convert(save, tmp_path, capsys):
    checkpoint = old_checkpoint('mmpretrain/rednet26')
    key = next(iter(checkpoint['state_dict']))
    wrapped = {**checkpoint, 'state_dict': {f'module.{k}': v for k, v in checkpoint['state_dict'].items()}}
    out = tmp_path / 'new' / 'rednet26.pth'
    config = str(ROOT / 'configs' / 'mmpretrain' / 'rednet26.py')
    assert main(['convert', save(wrapped), str(out), '--config', config]) == 0
    printed = capsys.readouterr().out
    assert f'state_dict.module.{key} -> state_dict.{key}\n' in printed
    assert 'meta.CLASSES -> meta.dataset_meta.classes\n' in printed
    loaded = torch.load(out, weights_only=True)
    assert loaded['state_dict'].keys() == checkpoint['state_dict'].keys()
    assert loaded['meta']['dataset_meta'] == dict(classes=META['CLASSES'], palette=META['PALETTE'])
    assert loaded['meta']['epoch'] == 12 and loaded['optimizer'] == checkpoint['optimizer']
    assert list(out.parent.iterdir()) == [out]

    key = spoil(checkpoint['state_dict'], 'missing')
    out.unlink()
    assert main(['convert', save(checkpoint), str(out), '--config', config]) == 2
    assert f'1 missing in the checkpoint: {key};' in capsys.readouterr().err and not out.exists()


def test_convert_names_a_missing_file(tmp_path, capsys):
    assert main(['convert', str(tmp_path / 'absent.pth'), str(tmp_path / 'out.pth')]) == 2
    assert 'absent.pth is not a file' in capsys.readouterr().err


STATE = {'backbone.conv1.weight': torch.ones(1), 'head.fc.weight': torch.ones(2)}


def named(name):
    """Returns the parameters with other names."""
    return {name(key): value for key, value in STATE.items()}


@pytest.mark.parametrize(
    'checkpoint',
    (
        dict(model=STATE, epoch=3),  # torchvision
        dict(model_state_dict=STATE, optimizer_state_dict={}),  # PyTorch's tutorials
        dict(module=STATE, dp_world_size=2),  # DeepSpeed
        dict(net=STATE, acc=0.9),
        dict(model=named('module.{}'.format)),
        dict(state_dict=STATE, state_dict_ema=named('module.{}'.format), arch='rednet26'),  # timm
        named('_orig_mod.{}'.format),
        named('module._orig_mod.{}'.format),
        named('_orig_mod.module.{}'.format),
        named('_orig_mod.module._orig_mod.{}'.format),
        named('module.module.{}'.format),
        {**STATE, **named(lambda key: f'ema_{key.replace(".", "_")}')},  # mmcv 1.x
        dict(state_dict={**STATE, 'ema_backbone_conv1_weight': torch.zeros(1)}),
    ),
)
def test_layouts_that_people_have(checkpoint):
    converted, _ = convert(checkpoint)
    assert converted['state_dict'].keys() == STATE.keys()
    assert all(converted['state_dict'][key] is value for key, value in STATE.items())


def test_an_entry_that_is_left_out_is_reported():
    _, renamed = convert({**STATE, 'ema_head_fc_weight': torch.ones(2)})
    assert renamed == {'state_dict.ema_head_fc_weight': ''}


def test_two_parameters_of_one_name_are_refused():
    with pytest.raises(ValueError, match='get the name head.fc.weight: remove one'):
        convert({**STATE, 'module.head.fc.weight': torch.ones(2)})


@pytest.mark.parametrize('checkpoint', (dict(epoch=3, optimizer={}), dict(teacher=STATE, student=STATE)))
def test_the_keys_of_a_checkpoint_without_parameters_are_named(checkpoint):
    with pytest.raises(ValueError, match=f'{", ".join(map(repr, checkpoint))}: give .* save'):
        convert(checkpoint)


@pytest.mark.parametrize('prefix', ('model.', 'student.', 'net.encoder.'))
def test_a_prefix_is_named_and_converted(prefix, save, tmp_path):
    """Lightning's checkpoints, and those of a teacher and a student."""
    model = Model(3)
    state_dict = {f'{prefix}{key}': value for key, value in model.state_dict().items()}
    path, out = save(dict(state_dict={**state_dict, 'loss.weight': torch.ones(1)})), tmp_path / 'OUT.pth'
    with pytest.raises(ValueError, match=f'python -m mmrednet convert {path} OUT.pth --prefix {prefix}`'):
        check(model, load(path)['state_dict'], path, '')
    assert main(['convert', path, str(out), '--prefix', prefix]) == 0
    assert check(model, load(str(out))['state_dict'], 'OUT.pth', '').keys() == model.state_dict().keys()
