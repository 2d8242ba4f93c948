"""Training with the hook and without it, by mmengine's runner."""

import json

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.registry import RUNNERS, init_default_scope

from mmrednet.engine.kernel_hook import KernelHeatMapHook


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):
        folder = tmp_path / 'images' / f'class{i % 2}'
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f'{i}.png'), rng.integers(0, 256, (32, 32, 3), np.uint8))
    init_default_scope('mmpretrain')
    config = Config.fromfile(ROOT / 'configs' / 'mmpretrain' / 'rednet26_demo.py')
    config.model.backbone.update(base_channels=16, stem_channels=32, kernel_size=3)
    config.model.head.update(in_channels=512, num_classes=2)
    config.data_preprocessor.num_classes = 2
    for name in ('train', 'val'):
        loader = config[f'{name}_dataloader']
        # The flips of the images use the process's random generators.
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.pipeline[1].scale = 32
        loader.dataset.data_prefix = str(tmp_path / 'images')
    config.test_dataloader = config.test_evaluator = config.test_cfg = None
    config.train_cfg.update(max_epochs=3, val_interval=1)
    config.randomness = dict(seed=0)
    config.default_hooks.logger.interval = 1
    return config


def train(config, folder, *hooks):
    config = config.copy()
    config.work_dir, config.experiment_name = str(folder), folder.name
    config.custom_hooks = list(hooks)
    runner = RUNNERS.build(config)
    runner.train()
    (scalars,) = folder.glob('*/vis_data/scalars.json')
    logged = [json.loads(line) for line in scalars.read_text().splitlines()]
    for entry in logged:
        for name in ('time', 'data_time'):
            entry.pop(name)
    return {name: value.clone() for name, value in runner.model.state_dict().items()}, logged


def test_draws_and_leaves_training_as_it_is(config, tmp_path):
    expected, logged = train(config, tmp_path / 'without')
    actual, with_hook = train(
        config, tmp_path / 'with', dict(type='mmrednet.KernelHeatMapHook', interval=2, images=3, groups=[1])
    )
    assert logged == with_hook and len(logged) == 3 * 2 + 3
    assert all(torch.equal(value, expected[name]) for name, value in actual.items())
    # The first and the third validation, after 2 and 6 iterations.
    pictures = sorted((tmp_path / 'with').glob('*/vis_data/vis_image/*'))
    assert [path.name for path in pictures] == [f'kernels_backbone.layer2.1.conv2_{i}.png' for i in (2, 6)]
    images = [cv2.imread(str(path)) for path in pictures]
    assert images[0].shape == images[1].shape and (images[0] != images[1]).any()
    assert not list((tmp_path / 'without').glob('*/vis_data/vis_image/*'))


def test_tensorboard_has_the_pictures(config, tmp_path):
    events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    config.visualizer.vis_backends.append(dict(type='TensorboardVisBackend'))
    train(config, tmp_path / 'run', dict(type='mmrednet.KernelHeatMapHook', interval=2))
    (path,) = (tmp_path / 'run').glob('*/vis_data/events.*')
    logged = events.EventAccumulator(str(path), dict(images=0)).Reload()
    name = 'kernels_backbone.layer2.1.conv2'
    pictures = logged.Images(name)
    assert [picture.step for picture in pictures] == [2, 6]
    for picture in pictures:
        written = cv2.imread(str(path.parent / 'vis_image' / f'{name}_{picture.step}.png'))
        shown = cv2.imdecode(np.frombuffer(picture.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
        assert (shown == written).all()


def test_wrong_arguments_raise_before_training(config, tmp_path):
    hook = dict(type='mmrednet.KernelHeatMapHook', layer='backbone.layer9.0.conv2')
    with pytest.raises(ValueError, match='layer9.*give one of backbone.stem.1, backbone.layer1.0.conv2'):
        train(config, tmp_path / 'run', hook)
    assert not list(tmp_path.glob('run/*.pth'))
    with pytest.raises(ValueError, match='images must be at least 1, but is 0'):
        KernelHeatMapHook(images=0)
