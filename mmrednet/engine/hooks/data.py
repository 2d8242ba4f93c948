"""The hook that checks the files of data sets."""

from contextlib import suppress
from logging import WARNING
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.logging import print_log

from ...errors import one_line
from ...inference.photos import load_photo
from ...registry import HOOKS
from ..datasets import check_coco
from .classes import find_datasets, has_coco_file

SAMPLES = 32
# Parsing a larger annotation file takes seconds, and it is probably that of a well-known data set.
MOST_BYTES = 100 << 20
LEAVE_OUT = 'if this is intended, set default_hooks.check_data=None'


@HOOKS.register_module()
class CheckDataHook(Hook):
    """Stops a run before training or testing begins if files of its data sets are wrong.

    It checks annotation files in COCO's format, and warns of annotations that mmdet leaves out. From each data set it
    loads 32 samples, evenly spread, with the steps ``LoadImageFromFile`` and ``LoadAnnotations`` of its pipeline. It
    stops the run if

    - a file is missing or damaged,
    - an image does not have the size that the annotation file gives, for example because of its EXIF orientation,
    - a mask of mmseg has colours, another size than its image, or values that are no labels.
    """

    def before_run(self, runner) -> None:
        """Checks the data sets that the runner has built.

        Raises:
            ValueError: A file is wrong.
        """
        for where, dataset in find_datasets(runner):
            if has_coco_file(dataset):
                _check_annotations(where, dataset)
            if isinstance(dataset, BaseDataset):
                _check_samples(where, dataset)


def _check_annotations(where: str, dataset) -> None:
    content = b''
    with suppress(OSError):  # the data set has read it elsewhere
        content = get(dataset.ann_file, backend_args=getattr(dataset, 'backend_args', None))
    if dataset.ann_file.endswith('.json') and 0 < len(content) <= MOST_BYTES:
        try:
            note = check_coco(dataset.ann_file, content, dataset.metainfo['classes'], where.startswith('train'))
        except ValueError as error:
            raise ValueError(f'{where}: {error}; {LEAVE_OUT}') from error
        if note:
            print_log(f'{where}: {note}', 'current', WARNING)


def _check_samples(where: str, dataset: BaseDataset) -> None:
    steps = {type(step).__name__: step for step in getattr(dataset.pipeline, 'transforms', ())}
    if (load := steps.get('LoadImageFromFile')) is None:
        return
    ignored, seen = getattr(dataset, 'ignore_index', None), set()
    for index in np.linspace(0, len(dataset) - 1, min(len(dataset), SAMPLES)).astype(int).tolist():
        sample = dataset.get_data_info(index)
        size = [sample.get('height'), sample.get('width')]
        try:
            sample = load_photo(sample, load)
            _check_size(sample, size)
            if annotations := steps.get('LoadAnnotations'):
                if getattr(annotations, 'with_mask', False) and any('mask' not in one for one in sample['instances']):
                    raise ValueError('an object has no segmentation: add it, or set with_mask=False in LoadAnnotations')
                seen |= _find_labels(annotations(sample), dataset)
        except Exception as error:  # a step can raise anything
            reason = one_line(error)
            if isinstance(error, FileNotFoundError):
                reason = f'there is no file {error.filename}: correct data_prefix or seg_map_suffix'
            place = f'{where}, sample {index} ({sample["img_path"]})'
            raise ValueError(f'{place}: {reason}; {LEAVE_OUT}') from error
    if ignored in seen and len(seen) == 2 and len(dataset.metainfo.get('classes') or ()) > 1:
        raise ValueError(
            f'{where}: the masks have only the values {sorted(seen)}, and {ignored} is ignored in training: write the '
            f'labels 0, 1, ... into the masks; {LEAVE_OUT}'
        )


def _check_size(sample: dict, size: list) -> None:
    actual = [*sample['img'].shape[:2]]
    if None not in size and size != actual:
        remedy = 'correct the file'
        if size == actual[::-1]:
            remedy += ', or set color_type="color_ignore_orientation" of LoadImageFromFile, which ignores EXIF data'
        raise ValueError(f'height and width are {actual}, but {size} in the annotation file: {remedy}')


def _find_labels(sample: dict, dataset: Any) -> set[int]:
    """Returns the values of a mask of mmseg; other annotations have none. Raises ValueError if the mask is wrong."""
    if not hasattr(dataset, 'reduce_zero_label') or 'gt_seg_map' not in sample:
        return set()
    mask, file = sample['gt_seg_map'], sample['seg_map_path']
    if mask.ndim != 2:
        raise ValueError(f'the mask {file} has {mask.shape[-1]} channels: write the labels 0, 1, ... into a single one')
    if (size := sample['img'].shape[:2]) != mask.shape:
        raise ValueError(f'height and width are {mask.shape} in the mask {file} and {size} in the image: correct one')
    values, classes = set(np.unique(mask).tolist()), dataset.metainfo.get('classes')
    wrong = sorted(values - {dataset.ignore_index} - {*range(len(classes or ()))})
    if classes and wrong:
        raise ValueError(
            f'the mask {file} has the values {wrong[:5]}, but the labels of the {len(classes)} classes are 0 to '
            f'{len(classes) - 1}: correct the masks, metainfo.classes or reduce_zero_label'
        )
    return values
