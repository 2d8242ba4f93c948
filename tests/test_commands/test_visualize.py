"""The command's pictures and its errors."""

import re
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT, registry
from matplotlib.figure import Figure
from mmengine.config import Config

from mmrednet.__main__ import main

CONFIGS = {
    'mmpretrain': 'mmpretrain/rednet26_demo.py',
    'mmdet': 'mmdet/faster_rcnn_rednet50_invfpn_invhead.py',
    'mmseg': 'mmseg/semantic_fpn_rednet50_invfpn_demo.py',
}
LAYERS = {'mmpretrain': None, 'mmdet': 'rpn_head.rpn_conv', 'mmseg': 'neck.fpn_convs.1'}
NARROW = 'backbone=dict(depth=26, base_channels=16, stem_channels=32)'
# COCO's 1333 x 800 pixels take long.
SMALL = """
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
"""
OVERRIDES = {
    'mmpretrain': f'model = dict({NARROW}, head=dict(in_channels=512))',
    'mmdet': f'model = dict({NARROW}, neck=dict(in_channels=[64, 128, 256, 512])){SMALL}',
    'mmseg': f'model = dict({NARROW}, neck=dict(in_channels=[64, 128, 256, 512]))',
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command in a folder with two images and the narrow configs."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, size in dict(wide=(40, 64), high=(70, 50)).items():
        cv2.imwrite(f'{name}.png', rng.integers(0, 256, (*size, 3), np.uint8))
    for scope, config in CONFIGS.items():
        Path(f'{scope}.py').write_text(f"_base_ = '{ROOT}/configs/{config}'\n{OVERRIDES[scope]}\n")

    def run(*args):
        return main(['visualize', *args])

    return run


def applied_kernels(scope, config, weights, image, layer):
    """Returns the model's input, and the kernels that a layer applies first, in the toolbox's own function."""
    if scope == 'mmpretrain':
        from mmpretrain import ImageClassificationInferencer

        show = ImageClassificationInferencer(config, pretrained=weights, device='cpu')
        model = show.model
    elif scope == 'mmdet':
        from mmdet.apis import inference_detector, init_detector

        model = init_detector(config, weights, device='cpu')
        show = partial(inference_detector, model)
    else:
        from mmseg.apis import inference_model, init_model

        model = init_model(config, weights, device='cpu')
        show = partial(inference_model, model)
    inputs, kernels = [], []
    model.data_preprocessor.register_forward_pre_hook(lambda _, args: inputs.append(args[0]['inputs'][0]))
    module = model.get_submodule(layer)
    module.register_forward_hook(lambda _, args, output: kernels.append(module.generate_kernel(args[0])))
    with torch.no_grad():
        show(image)
    return inputs[0], kernels[0][0]


@pytest.mark.parametrize('scope', CONFIGS)
def test_every_toolbox(scope, run, monkeypatch, capsys):
    """The heat maps show the kernels that the layer applies when the toolbox's own function runs the model."""
    config = Config.fromfile(f'{scope}.py')
    if 'data_preprocessor' in config:
        config.model.data_preprocessor = config.data_preprocessor
    torch.manual_seed(0)
    torch.save(dict(state_dict=registry(scope).build(config.model).state_dict(), meta={}), 'weights.pth')
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda f, *args, **kw: figures.append(f) or save(f, *args, **kw))
    options = ['--layer', LAYERS[scope]] if LAYERS[scope] else []
    command = ('wide.png', 'high.png', '--config', f'{scope}.py', '--checkpoint', 'weights.pth', *options)
    assert not run(*command, '--groups', '1', '0', '--at', '30,20', '0,39', '--out', 'out')
    layer = LAYERS[scope] or 'backbone.layer2.1.conv2'
    names = ('heat_maps', 'kernels_1_wide', 'kernels_2_high')
    assert capsys.readouterr().out.split() == [f'out/{layer}_{name}.png' for name in names]
    assert all(cv2.imread(f'out/{layer}_{name}.png').std() > 5 for name in names)

    for number, image in enumerate(('wide.png', 'high.png')):
        pixels, kernels = applied_kernels(scope, f'{scope}.py', 'weights.pth', image, layer)
        maps = kernels.double().sum((1, 2))
        panels = figures[0].axes[3 * number : 3 * number + 3]
        for axis, group in zip(panels[1:], (1, 0), strict=True):
            drawn = torch.from_numpy(np.array(axis.images[0].get_array())).double()
            torch.testing.assert_close(drawn, maps[group], rtol=1e-4, atol=1e-5 * float(maps.abs().max()))
        assert np.array_equal(panels[0].images[0].get_array(), pixels.flip(0).permute(1, 2, 0))


@pytest.mark.parametrize(
    ('args', 'text'),
    (
        (
            ('wide.png', '--config', 'mmpretrain.py', '--layer', 'conv2'),
            "'conv2': give one of backbone.stem.1, backbone.l",
        ),
        (('wide.png', '--config', 'mmpretrain.py', '--groups', '8'), r'groups must be from 0 to 1 .* but are \[8\]'),
        (
            ('wide.png', '--config', 'mmpretrain.py', '--at', '64,0'),
            '64,0 is a place .* x from 0 to 47 and y from 0 to 47',
        ),
        (('wide.png', '--config', 'mmpretrain.py', '--checkpoint', 'none.pth'), 'none.pth is not a file'),
        (('wide.png', '--config', 'rednet27'), "no config is named 'rednet27': do you mean"),
        (('wide.png', 'none.png', '--config', 'mmpretrain.py'), 'none.png is not a file'),
        (('mmdet.py', '--config', 'mmpretrain.py'), 'mmdet.py cannot be read as an image'),
        (('wide.png', '--config', 'plain.py'), 'the model, ImageClassifier, has no involution'),
    ),
)
def test_errors_are_one_line(args, text, run, capsys):
    Path('plain.py').write_text("_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'\n")
    assert run(*args, '--out', 'out') == 2
    output, error = capsys.readouterr()
    lines = [line for line in error.splitlines() if 'without --checkpoint' not in line]
    assert not output and len(lines) == 1 and lines[0].startswith('mmrednet visualize: error: ')
    assert re.search(text, lines[0])
    assert not Path('out').exists()


def test_a_place_is_two_numbers(run, capsys):
    with pytest.raises(SystemExit, match='2'):
        run('wide.png', '--config', 'mmpretrain.py', '--out', 'out', '--at', '3')
    assert "argument --at: must be X,Y in pixels, but is '3'" in capsys.readouterr().err


def test_a_dense_config_without_a_checkpoint_has_random_weights(run, capsys):
    """Training would start from a file of ImageNet weights, which is not needed here."""
    config = Config.fromfile('mmdet.py')
    assert config.model.backbone.init_cfg.checkpoint == 'mmrednet://rednet50'
    assert run('wide.png', '--config', 'mmdet.py', '--groups', '0', '--out', 'out') == 0
    assert 'without --checkpoint the weights are random' in capsys.readouterr().err
