"""Photographs in, what they show out: a table, and with ``--out`` pictures. The toolboxes' inferencers do the work."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from ..configs import find
from ..environment import find_device
from ..errors import one_line
from ..files import replacing
from ..inference.photos import find_photos, read_photos
from ..requirements import require
from ..toolboxes import enter_scope, find_dataset, quiet, read_config
from . import CommandError
from .common import to_count, to_path

DEFAULT = 'rednet50_in1k'
# Of pictures, in pixels: letters need some room, and mmseg looks at every pixel in Python to place the names.
LEAST_SIDE, LONGEST_SIDE = 320, 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add = parser.add_argument
    add('photos', nargs='+', metavar='PHOTO', help="a file, a folder or a pattern such as 'trip/**/*.jpg'")
    config = parser.add_mutually_exclusive_group()
    config.add_argument(
        '--model', metavar='NAME', help=f'a model of mmrednet; public weights are downloaded once (default: {DEFAULT})'
    )
    config.add_argument('--config', metavar='C', help='or a config, its path or name')
    add(
        '--checkpoint',
        metavar='F',
        help='its weights, a file or address: .pth (one that mmengine saved holds its config), .pdparams, .safetensors',
    )
    add('--out', type=to_path, metavar='FOLDER', help='writes pictures there')
    add('--json', type=to_path, metavar='FILE', help='writes the results there, unrounded')
    add('--device', metavar='D', help='cpu, cuda, cuda:1, ... (default: the best that there is)')
    add('--score-threshold', type=fraction, metavar='T', help='least score (default: 0.3 of detections, else 0)')
    add(
        '--top',
        type=to_count,
        metavar='K',
        help='most results of a photograph (default: 5 of classification, else all)',
    )
    add(
        '--batch-size',
        type=to_count,
        default=1,
        metavar='N',
        help='photographs of one size that go together (default: 1)',
    )


def fraction(text: str) -> float:
    """Reads a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'must be from 0 to 1, but is {text}')
    return value


def run(args: argparse.Namespace) -> int:
    """Predicts. Returns 2 where a photograph could not be, which does not stop the others."""
    failed = False

    def fail(text: str) -> None:
        nonlocal failed
        failed = True
        print(f'mmrednet predict: error: {text}', file=sys.stderr)

    photos = find_photos(args.photos, fail)
    width = max(map(len, photos), default=0)
    task, results, pictures = None, [], set[Path]()
    for batch in _batches(read_photos(photos, fail), args.batch_size):
        if task is None:  # not before there is a photograph to look at, since weights may have to be downloaded
            with quiet():
                task = _build_task(args)
            print(f'{"file":{width}}  {task.header}')
        try:
            with quiet():
                found = []
                for (_, image), sample in zip(batch, task.predict([image for _, image in batch]), strict=True):
                    rows = task.select(sample)
                    found.append((rows, task.draw(image, sample) if args.out else None))
        except Exception as error:  # anything, where an image is too small for the network or too large for the memory
            for photo, image in batch:
                height, breadth = image.shape[:2]
                fail(f'{photo} ({breadth}x{height}) could not be predicted ({one_line(error)}): another size may help')
            continue
        for (photo, _), (rows, picture) in zip(batch, found, strict=True):
            for line in map(task.format, rows) if rows else ('nothing',):
                print(f'{photo:{width}}  {line}', flush=True)
            results.append(dict(file=photo, task=task.name, results=rows))
            if picture is not None:
                _write_picture(_picture_path(args.out, photo, pictures), picture)
    if args.json:
        with replacing(args.json) as part:
            part.write_text(json.dumps(results, indent=1) + '\n')
    return 2 if failed else 0


def _batches(images: Iterator[tuple[str, Any]], size: int) -> Iterator[list[tuple[str, Any]]]:
    """Yields what follows each other and has one size, since a batch is one tensor."""
    for _, alike in groupby(images, lambda item: item[1].shape):
        while batch := list(islice(alike, size)):
            yield batch


def _build_task(args: argparse.Namespace) -> '_Task':
    """Builds the model, and fills it once it is known that the weights fit."""
    try:
        require('mmengine')
        return _build(args)
    except CommandError:
        raise
    except Exception as error:  # a config can name anything
        raise CommandError(one_line(error)) from error


def _build(args: argparse.Namespace) -> '_Task':
    from mmengine.device import get_device

    from ..checkpoint import IMAGENET, check, load

    device = str(find_device(args.device or get_device()))
    name, source = args.config, args.checkpoint
    if name is None and (args.model or source is None):
        name = find(args.model or DEFAULT)
        if source is None and (stem := Path(name).stem) in IMAGENET:
            source = f'mmrednet://{stem}'
    config = read_config(name) if name else None
    if source is None:
        model = f'{args.model} has no public weights' if args.model else f'--config {name} says nothing of weights'
        raise CommandError(f'{model}: give its checkpoint with --checkpoint')
    checkpoint = None
    if config is None:
        checkpoint = load(source)
        config = _config_in(checkpoint, source)
    task = _make_task(config, name or source, device, args)
    checkpoint = checkpoint or load(source)
    model = task.inferencer.model
    remedy = 'give the config that it was trained with (--config or --model), or a checkpoint of this one'
    model.load_state_dict(check(model, checkpoint['state_dict'], source, remedy), strict=False)
    task.set_names(*_names(config, checkpoint, model))
    return task


def _config_in(checkpoint: dict, source: str):
    from mmengine.config import Config

    text = checkpoint['meta'].get('cfg')
    if not text:
        raise CommandError(
            f'{source} holds no config: give its model with --config, or by name with --model '
            f'({DEFAULT} for a RedNet-50 of ImageNet)'
        )
    if '://' in source:
        raise CommandError(
            f'{source} holds a config, which can run code: give --config or --model beside it, or, if you trust who '
            'made it, download it and give its path'
        )
    try:
        return Config.fromstring(text, '.py')
    except Exception as error:
        raise CommandError(
            f'the config in {source} cannot be read ({one_line(error)}): give --config or --model'
        ) from error


def _make_task(config, source: str, device: str, args: argparse.Namespace) -> '_Task':
    scope = enter_scope(config, source)
    try:
        config.test_dataloader.dataset = find_dataset(config)  # in which inferencers look for the pipeline
        return TASKS[scope](config, device, args)
    except CommandError:
        raise
    except Exception as error:
        raise CommandError(
            f'{source} cannot be built ({one_line(error)}): correct the config, or install what it needs'
        ) from error


def _names(config, checkpoint: dict, model) -> tuple[list[str], list]:
    """Returns names and colours of the classes: the checkpoint's, else those of the config's data set, else numbers."""
    import numpy as np

    dataset = config.test_dataloader.dataset
    kind = dataset.type  # new-style configs name the class itself
    if isinstance(kind, str):
        kind = import_module(f'{config.default_scope}.registry').DATASETS.get(kind)
    ours = {**getattr(kind, 'METAINFO', {}), **dataset.get('metainfo', {})}
    # An RPN has one class, and stands beside the head that has all.
    size = max(getattr(module, 'num_classes', None) or 0 for module in model.modules())
    metas = [meta for meta in (checkpoint['meta'].get('dataset_meta') or {}, ours) if meta.get('classes')]
    meta = next((meta for meta in metas if len(meta['classes']) == size), {})
    if not meta:
        known = len(metas[0]['classes']) if metas else 0
        classes = f'{size} class{"es" * (size > 1)}'
        print(
            f'mmrednet predict: the model has {classes}, and {known or "no"} names are known: numbers stand for them',
            file=sys.stderr,
        )
    names = [str(name) for name in meta.get('classes', range(size))]
    colors = meta.get('palette')
    if colors is None or len(colors) != size:
        colors = np.random.RandomState(42).randint(0, 256, (size, 3))
    return names, [tuple(map(int, color)) for color in colors]


class _Task:
    """A toolbox's inferencer, what is listed of its results, and how they are drawn."""

    name = header = ''

    def __init__(self, inferencer, visualizer, args: argparse.Namespace) -> None:
        self.inferencer, self.visualizer = inferencer, visualizer
        self.top, self.threshold = args.top, args.score_threshold

    def set_names(self, names: Sequence[str], colors: list) -> None:
        self.names = names
        self.visualizer.dataset_meta = dict(classes=names, palette=colors)

    def predict(self, images: list) -> Any:
        """Returns the toolbox's data sample of each image."""
        return self.inferencer(images, return_datasamples=True, batch_size=len(images))

    def select(self, sample) -> list[dict]:
        """Leaves in a sample what is asked for, and returns it, the best first."""
        raise NotImplementedError

    def format(self, row: dict) -> str:
        raise NotImplementedError

    def draw(self, image, sample):
        """Returns the picture (H, W, 3) in RGB."""
        self.visualizer.add_datasample('', image[..., ::-1], sample, draw_gt=False)
        return self.visualizer.get_image()


class _Classification(_Task):
    name, header = 'classification', 'score  what'

    def __init__(self, config, device: str, args: argparse.Namespace) -> None:
        from mmpretrain import ImageClassificationInferencer
        from mmpretrain.visualization import UniversalVisualizer

        inferencer = ImageClassificationInferencer(config, pretrained=False, device=device)
        super().__init__(inferencer, UniversalVisualizer(), args)

    def select(self, sample) -> list[dict]:
        scores, labels = sample.pred_score.sort(descending=True)
        count = min(self.top or 5, int((scores >= (self.threshold or 0)).sum()))
        sample.set_pred_label(labels[:count])
        return [
            dict(label=label, what=self.names[label], score=score)
            for label, score in zip(labels[:count].tolist(), scores[:count].tolist(), strict=True)
        ]

    def format(self, row: dict) -> str:
        return f'{row["score"]:.3f}  {row["what"]}'

    def draw(self, image, sample):
        return self.visualizer.visualize_cls(_resized(image)[..., ::-1], sample, draw_gt=False)


class _Detection(_Task):
    name, header = 'detection', f'score  {"x1 y1 x2 y2":19}  what'

    def __init__(self, config, device: str, args: argparse.Namespace) -> None:
        from mmdet.apis import DetInferencer
        from mmdet.visualization import DetLocalVisualizer

        super().__init__(DetInferencer(config, device=device), DetLocalVisualizer(), args)

    def predict(self, images: list) -> list:
        return super().predict(images)['predictions']

    def select(self, sample) -> list[dict]:
        found = sample.pred_instances
        found = found[found.scores >= (0.3 if self.threshold is None else self.threshold)]
        found = sample.pred_instances = found[found.scores.argsort(descending=True)[: self.top]]
        return [
            dict(label=label, what=self.names[label], score=score, box=box)
            for label, score, box in zip(
                found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist(), strict=True
            )
        ]

    def format(self, row: dict) -> str:
        return f'{row["score"]:.3f}  {" ".join(f"{side:.0f}" for side in row["box"]):19}  {row["what"]}'

    def draw(self, image, sample):
        old, image, found = image.shape, _resized(image), sample.pred_instances
        if image.shape != old and len(found):
            height, width = (new / old for new, old in zip(image.shape, old[:2], strict=False))
            found.bboxes = found.bboxes * found.bboxes.new_tensor((width, height, width, height))
            if 'masks' in found:
                found.masks = _resized_maps(found.masks, image).bool()
        self.visualizer.add_datasample('', image[..., ::-1], sample, draw_gt=False, pred_score_thr=0)
        return self.visualizer.get_image()


class _Segmentation(_Task):
    name, header = 'segmentation', 'share  what'

    def __init__(self, config, device: str, args: argparse.Namespace) -> None:
        from mmseg.apis import MMSegInferencer
        from mmseg.visualization import SegLocalVisualizer

        if args.score_threshold is not None:
            raise CommandError('--score-threshold is for classification and detection: a segmentation has no scores')
        super().__init__(MMSegInferencer(config, device=device), SegLocalVisualizer(alpha=0.5), args)

    def predict(self, images: list) -> list:
        found = super().predict(images)
        return found if isinstance(found, list) else [found]

    def select(self, sample) -> list[dict]:
        labels, counts = sample.pred_sem_seg.data.long().unique(return_counts=True)  # floats after a sigmoid
        shares, order = (counts / counts.sum()).sort(descending=True)
        return [
            dict(label=label, what=self.names[label], share=share)
            for label, share in zip(labels[order].tolist(), shares.tolist(), strict=True)
        ][: self.top]

    def format(self, row: dict) -> str:
        return f'{row["share"]:5.1%}  {row["what"]}'

    def draw(self, image, sample):
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        image = _resized(image, shrink=True)
        labels = PixelData(data=_resized_maps(sample.pred_sem_seg.data, image).long())
        return super().draw(image, SegDataSample(pred_sem_seg=labels))


# By the scope of the configs.
TASKS = {'mmpretrain': _Classification, 'mmdet': _Detection, 'mmseg': _Segmentation}


def _resized(image, shrink: bool = False):
    """Returns an image that is not too small for letters, nor, if it may shrink, too large to draw in."""
    import mmcv

    height, width = image.shape[:2]
    most = LONGEST_SIDE / max(height, width)
    scale = max(1, min(LEAST_SIDE / min(height, width), most))
    scale = min(scale, most) if shrink else scale
    return mmcv.imresize(image, (max(1, round(width * scale)), max(1, round(height * scale))))


def _resized_maps(maps, image):
    """Returns maps (C, H, W) of the size of an image."""
    from torch.nn.functional import interpolate

    return interpolate(maps[None].float(), image.shape[:2])[0]


def _picture_path(folder: Path, photo: str, taken: set[Path]) -> Path:
    """Returns where a picture goes: photographs of one name, from several folders, get a number."""
    stem = f'{Path(photo).stem}_prediction'
    path, number = folder / f'{stem}.png', 1
    while path in taken:
        number += 1
        path = folder / f'{stem}_{number}.png'
    taken.add(path)
    return path


def _write_picture(path: Path, picture) -> None:
    import cv2

    with replacing(path) as part:
        part.write_bytes(cv2.imencode('.png', picture[..., ::-1])[1].tobytes())
