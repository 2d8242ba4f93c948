"""Tries RedNet instead of every ResNet in the toolboxes' config zoos: builds, computes a loss and predicts.

A model that fails is tried with its own ResNet, too. Each result is a line of JSON in a file, and a model that has a
line is not tried again. The results are printed as Markdown tables.
"""

import argparse
import gc
import inspect
import json
import logging
import multiprocessing
import os
import re
import sys
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from operator import getitem
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData

from mmrednet.formatting import markdown_table
from mmrednet.models.rednet import Bottleneck, RedNet
from mmrednet.requirements import TOOLBOXES

WORKS = 'works'
BACKBONES = ('ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNet_CIFAR')
# The blocks of ResNet-18 and -34 do not widen: a narrow RedNet has the same output channels.
DEPTHS = {18: 26, 34: 38}
TAKEN = {*inspect.signature(RedNet).parameters} - {'depth', 'base_channels', 'pretrained', 'init_cfg', 'unknown'}
# No checkpoint is loaded here. A RedNet from scratch freezes nothing, and its norm layers measure the features.
FROM_SCRATCH = {'frozen_stages': -1, 'norm_eval': False}
# Two models that differ in nothing else count as one.
ALIKE = {'init_cfg', 'pretrained', 'depth', 'num_classes', 'test_cfg', 'data_preprocessor'}
# Pixels of an image's side. A model that fails is tried with twice and three times as many.
SIDES = {'mmdet': 128, 'mmseg': 64, 'mmpretrain': 64}


def zoo(toolbox: str) -> Path:
    """Returns the folder of an installed toolbox's configs."""
    return Path(find_spec(toolbox).origin).parent / '.mim' / 'configs'


def find_backbones(node, path: tuple = ()) -> Iterator[tuple[tuple, dict]]:
    """Yields where each ResNet stands in a model's config, and its entry."""
    if isinstance(node, dict):
        if str(node.get('type')).removeprefix('mmpretrain.') in BACKBONES:
            yield path, node
        for key, value in node.items():
            yield from find_backbones(value, (*path, key))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from find_backbones(value, (*path, i))


def without(node, keys: set[str]):
    """Returns a config without what is under these keys, and without checkpoints to start from."""
    if isinstance(node, dict):
        return {
            key: without(value, keys)
            for key, value in node.items()
            if key not in keys and not (key == 'init_cfg' and 'Pretrained' in str(value))
        }
    return type(node)(without(value, keys) for value in node) if isinstance(node, list | tuple) else node


def cap_proposals(node, most: int = 20) -> None:
    """Bounds how many boxes go from stage to stage of a model, for speed."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    for child in children:
        cap_proposals(child, most)
    # Those of an RPN; a head's may be its number of queries.
    if isinstance(node, dict) and {'nms_pre', 'max_per_img'} <= node.keys():
        node['max_per_img'] = min(node['max_per_img'], most)


def find_models(toolbox: str) -> list[list[str]]:
    """Returns, for each model with a ResNet in the zoo, its configs, the shallowest and shortest named first."""
    models = defaultdict(list)
    for path in sorted(zoo(toolbox).rglob('*.py')):
        name = f'{toolbox}::{path.relative_to(zoo(toolbox)).as_posix()}'
        if '_base_' in path.parts:
            continue
        try:
            model = Config.fromfile(path).get('model', {})
        except Exception as error:
            print(f'{name} cannot be read: {words(error)}', file=sys.stderr)
            continue
        if depths := [entry['depth'] for _, entry in find_backbones(model)]:
            key = json.dumps(without(model, ALIKE), default=str, sort_keys=True)
            models[key].append((max(depths), len(name), name))
    return [[name for *_, name in sorted(configs)] for configs in models.values()]


def to_rednet(entry: dict) -> dict:
    """Returns the entry that a user writes instead of a ResNet's."""
    depth = entry['depth']
    out_channels = entry.get('base_channels', 64) * entry.get('expansion', 1 if depth in DEPTHS else 4)
    return dict(
        _delete_=True,
        type='mmrednet.RedNet',
        depth=DEPTHS.get(depth, depth),
        base_channels=out_channels // Bottleneck.expansion,
        **{key: value for key, value in entry.items() if key in TAKEN - FROM_SCRATCH.keys()},
        **FROM_SCRATCH,
    )


def left_out(entry: dict) -> set[str]:
    """Returns the arguments of a ResNet's entry that RedNet does not have."""
    translated = {'type', 'depth', 'base_channels', 'expansion', 'init_cfg'}
    return {key for key, value in entry.items() if value is not None} - TAKEN - translated


def place_in(cfg: Config, path: tuple, entry: dict) -> None:
    """Puts a backbone's entry into a config's model, by merging as a child config does."""
    *parents, key = path
    parent = reduce(getitem, parents, cfg.model)
    if isinstance(parent, list):
        # A child config replaces a list as a whole.
        parent[key] = without(entry, {'_delete_'})
    else:
        cfg.merge_from_dict({'.'.join(map(str, ('model', *path))): entry})


def read(config: str, network: str, scale: int = 1) -> tuple[Config, int, set[str]]:
    """Reads ``'toolbox::folder/file.py'``, as it is or with RedNet, and without checkpoints and large images.

    Returns:
        tuple: The config, the side of its images, and which of ResNet's arguments RedNet's entry leaves out.
    """
    toolbox, name = config.split('::')
    cfg = Config.fromfile(zoo(toolbox) / name)
    omitted: set[str] = set()
    if network == 'RedNet':
        for path, entry in list(find_backbones(cfg.model)):
            omitted |= left_out(entry)
            place_in(cfg, path, to_rednet(entry))
    model = without(cfg.model.to_dict(), {'pretrained', 'teacher_ckpt', 'batch_augments'})
    cap_proposals(model)
    # The runner does this, too.
    model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    side = scale * SIDES[cfg.default_scope]
    if cfg.default_scope == 'mmseg':
        model['data_preprocessor'].update(size=(side, side), size_divisor=None, test_cfg=None)
    cfg.model = model
    return cfg, side, omitted


def detection_data(model: dict, side: int, training: bool) -> dict:
    """Returns a made-up batch for a model of mmdet."""
    from mmdet.structures import ReIDDataSample
    from mmdet.testing import demo_mm_inputs, demo_mm_proposals, demo_track_inputs

    image = (3, side, side)
    preprocessor = model['data_preprocessor']['type']
    if preprocessor == 'ReIDDataPreprocessor':
        samples = [ReIDDataSample().set_gt_label(label) for label in (0, 0, 1, 1)]
        return dict(inputs=list(torch.rand(4, *image)), data_samples=samples)
    if preprocessor == 'TrackDataPreprocessor':
        return demo_track_inputs(1, 2, key_frames_inds=[0], image_shapes=image, with_mask=True)
    if preprocessor == 'MultiBranchDataPreprocessor' and training:
        plain = {**model, 'data_preprocessor': model['data_preprocessor']['data_preprocessor']}
        branches = {name: detection_data(plain, side, True) for name in ('sup', 'unsup_teacher', 'unsup_student')}
        return {key: {name: data[key] for name, data in branches.items()} for key in ('inputs', 'data_samples')}
    # Some predict for one image at a time; semantic labels have the stride that the heads learn them at.
    shapes = [(3, side, side)] * (2 if training else 1)
    stride = 8 if 'semantic_head' in model.get('roi_head', ()) else 1
    data = demo_mm_inputs(
        len(shapes), shapes, num_classes=2, with_mask=True, with_semantic=True, sem_seg_output_strides=stride
    )
    for sample, proposals in zip(data['data_samples'], demo_mm_proposals(shapes, 50), strict=True):
        # The one class that every model has.
        sample.gt_instances.labels.zero_()
        sample.set_metainfo(dict(homography_matrix=np.eye(3, dtype=np.float32)))
        if model['type'] == 'FastRCNN':
            sample.proposals = proposals
    return data


def segmentation_data(model: dict, side: int, training: bool) -> dict:
    """Returns a made-up batch for a model of mmseg."""
    from mmseg.structures import SegDataSample

    items = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=(side, side), ori_shape=(side, side)))
        sample.gt_sem_seg = PixelData(data=torch.randint(2, (1, side, side)))
        items.append(dict(inputs=torch.rand(3, side, side) * 255, data_samples=sample))
    return pseudo_collate(items)


def classification_data(model: dict, side: int, training: bool) -> dict:
    """Returns a made-up batch for a classifier of mmpretrain, or views of one for self-supervision."""
    from mmpretrain.structures import DataSample

    several_labels = model['head']['type'] == 'CSRAClsHead'
    samples = [DataSample().set_gt_label([i] if several_labels else i) for i in range(2)]
    images = torch.rand(2, 3, side, side) * 255
    if training and model['data_preprocessor'].get('type') == 'SelfSupDataPreprocessor':
        views = sum(model['head']['loss']['num_crops']) if model['type'] == 'SwAV' else 2
        return dict(inputs=[images] * views, data_samples=samples)
    return dict(inputs=images, data_samples=samples)


DATA = {'mmdet': detection_data, 'mmseg': segmentation_data, 'mmpretrain': classification_data}


def build_and_run(config: str, network: str) -> dict:
    """Builds a config's model, computes a loss and predicts.

    Returns:
        dict: Under the network's name 'works' or the reason why not; under ``'left out'`` what :func:`read` left out.
    """
    # A config may name its teacher's config by a path from this folder.
    os.chdir(zoo(config.split('::')[0]).parent)
    outcome, omitted = '', set()
    for scale in (1, 2, 3):
        torch.manual_seed(0)
        np.random.seed(0)
        try:
            cfg, side, omitted = read(config, network, scale)
            _run(cfg, side, network)
        except Exception as error:
            outcome = words(error)
        else:
            outcome = WORKS
            break
    return {network: outcome, 'left out': sorted(omitted)}


def _run(cfg: Config, side: int, network: str) -> None:
    scope = cfg.default_scope
    init_default_scope(scope)
    import_module(f'{scope}.models')
    model = revert_sync_batchnorm(import_module(f'{scope}.registry').MODELS.build(cfg.model))
    model.init_weights()
    if network == 'RedNet' and not any(isinstance(module, RedNet) for module in model.modules()):
        raise RuntimeError('the model was built without RedNet')
    # mmseg's train() returns nothing.
    model.train()
    try:
        losses = model(**model.data_preprocessor(DATA[scope](cfg.model, side, True), True), mode='loss')
    except NotImplementedError:
        # Trackers consist of parts that were trained alone.
        losses = {}
    for name, value in losses.items():
        if not all(part.isfinite().all() for part in (value if isinstance(value, list) else [value])):
            raise RuntimeError(f'{name} is not finite')
    model.eval()
    # Self-supervised models give features only, and a retriever needs a gallery to predict.
    mode = 'predict' if hasattr(model, 'predict') and not hasattr(model, 'prototype') else 'tensor'
    with torch.no_grad():
        if not len(model(**model.data_preprocessor(DATA[scope](cfg.model, side, False), False), mode=mode)):
            raise RuntimeError('nothing was predicted')


def words(error: Exception) -> str:
    """Returns an error's type and first line, or where it was raised, without what differs between machines."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), '')
    text = text or f'at `{traceback.extract_tb(error.__traceback__)[-1].line}`'
    text = re.sub(r'/\S*/(site-packages|\.mim)/', '', ' '.join(text.split()))
    return f'{type(error).__name__}: {text[:120]}'


class Worker:
    """A process that tries models, so that a crash or a hang costs one of them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._process = None

    def __call__(self, *task: str) -> dict:
        """Returns what :func:`build_and_run` returns, or reports that it did not return."""
        if self._process is None:
            context = multiprocessing.get_context('spawn')
            self._connection, there = context.Pipe()
            self._process = context.Process(target=_work, args=(there,), daemon=True)
            self._process.start()
            there.close()
        self._connection.send(task)
        try:
            if self._connection.poll(self.seconds):
                return self._connection.recv()
            outcome = f'stopped after {self.seconds:.0f} s'
        except EOFError:
            outcome = 'the process ended'
        self._process.kill()
        self._process = None
        return {task[1]: outcome, 'left out': []}


def _work(connection) -> None:
    warnings.simplefilter('ignore')
    logging.disable(logging.ERROR)
    # The other process closes the connection at the end.
    with open(os.devnull, 'w') as sys.stdout, suppress(EOFError):
        while True:
            connection.send(build_and_run(*connection.recv()))
            # Models hold references to themselves, so they would fill the memory.
            gc.collect()


def tables(records: list[dict]) -> str:
    """Returns the results as Markdown: in numbers, what does not work, and what was left out."""
    numbers = []
    for toolbox in TOOLBOXES:
        of_toolbox = [record for record in records if record['configs'][0].startswith(f'{toolbox}::')]
        outcomes = Counter(WORKS if record['RedNet'] == WORKS else record['ResNet'] == WORKS for record in of_toolbox)
        configs = sum(len(record['configs']) for record in of_toolbox)
        numbers.append([toolbox, configs, len(of_toolbox), outcomes[WORKS], outcomes[True], outcomes[False]])
    numbers.append(['all', *(sum(column) for column in zip(*(row[1:] for row in numbers), strict=True))])
    rest = [
        [f'`{record["configs"][0]}`', len(record['configs']), record['ResNet'], record['RedNet']]
        for record in records
        if record['RedNet'] != WORKS
    ]
    omitted = defaultdict(list)
    for record in records:
        for argument in record['left out']:
            omitted[argument].append(record)
    arguments = [
        [f'`{argument}`', len(of_argument), sum(len(record['configs']) for record in of_argument)]
        for argument, of_argument in sorted(omitted.items(), key=lambda item: -len(item[1]))
    ]
    headings = ['toolbox', 'configs', 'models', 'RedNet works', 'only ResNet works', 'neither works']
    return '\n\n'.join(
        [
            markdown_table(headings, numbers, range(1, 6)),
            markdown_table(['config', 'configs of this model', 'ResNet', 'RedNet'], rest, [1]),
            markdown_table(['argument', 'models', 'configs'], arguments, [1, 2]),
        ]
    )


def parse_args() -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'configs', nargs='*', help='such as mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py (default: the whole zoos)'
    )
    parser.add_argument('--out', type=Path, default=Path('zoo.jsonl'), help='file of results (default: zoo.jsonl)')
    parser.add_argument('--seconds', type=float, default=300, help='limit for each model (default: 300)')
    return parser.parse_args()


def main() -> None:
    """Tries the models that are not yet in the file of results, and prints the tables."""
    args = parse_args()
    warnings.simplefilter('ignore')
    models = [[config] for config in args.configs] or [configs for name in TOOLBOXES for configs in find_models(name)]
    records = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {record['configs'][0] for record in records}
    worker = Worker(args.seconds)
    with args.out.open('a') as file:
        for i, configs in enumerate(models):
            if configs[0] in done:
                continue
            print(f'{i + 1}/{len(models)} {configs[0]}', file=sys.stderr)
            record = {'configs': configs, **worker(configs[0], 'RedNet')}
            if record['RedNet'] != WORKS:
                record['ResNet'] = worker(configs[0], 'ResNet')['ResNet']
            records.append(record)
            print(json.dumps(records[-1]), file=file, flush=True)
    print(tables(records))


if __name__ == '__main__':
    main()
