"""Explains why a data set cannot be built, and checks annotation files in COCO's format."""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator
from math import isfinite
from numbers import Real
from typing import Any

from mmengine.fileio import get

from ..errors import one_line

# The keys that mmdet reads from each entry. Its evaluation also reads `iscrowd` of annotations.
NEEDED = {
    'images': ('id', 'file_name', 'width', 'height'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
    'categories': ('id', 'name'),
}
SETTINGS = ('data_root', 'ann_file', 'data_prefix', 'img_suffix', 'seg_map_suffix', 'metainfo')
CROWD = 'are crowds or to be ignored'
BBOX = 'a bbox is x, y, width and height in pixels'


def explain(config, error: Exception) -> None:
    """Raises an error that names the cause, if a data set of this config could not be built.

    Args:
        config (dict): The config of the data set. It may wrap others.
        error (Exception): The error that the toolbox raised.

    Raises:
        FileNotFoundError: A ``data_root`` does not exist.
        ValueError: Another cause. For a missing file nothing is raised, since ``error`` names the file.
    """
    leaves = list(_find_leaves(config))
    for leaf in leaves:
        _check_data_root(leaf)
    if isinstance(error, OSError):
        return
    empty = 'at least one array' in str(error)
    for leaf in leaves:
        file = os.path.join(leaf.get('data_root') or '', str(leaf.get('ann_file') or ''))
        if file.endswith('.json'):
            classes = (leaf.get('metainfo') or {}).get('classes', () if empty else None)
            backend = leaf.get('backend_args')
            training = not leaf.get('test_mode')
            check_coco(file, get(file, backend), None if isinstance(classes, str) else classes, training)
    settings = '; '.join(
        f'{leaf.get("type")}: ' + ', '.join(f'{name}={leaf[name]!r}' for name in SETTINGS if name in leaf)
        for leaf in leaves
    )
    reason = 'no file or annotation matches' if empty else one_line(error)
    raise ValueError(f'a data set cannot be built ({reason}): correct its config or its files: {settings}') from error


def _find_leaves(config) -> Iterator[dict]:
    """Yields the configs of the data sets inside wrappers."""
    if isinstance(config, list | tuple):
        for item in config:
            yield from _find_leaves(item)
    elif isinstance(config, dict):
        inner = [config[key] for key in ('dataset', 'datasets') if config.get(key)]
        yield from _find_leaves(inner) if inner else [config]


def _check_data_root(config: dict) -> None:
    root = config.get('data_root')
    # With backend_args, the path may belong to another storage.
    if root and '://' not in str(root) and not config.get('backend_args') and not os.path.isdir(root):
        raise FileNotFoundError(
            f'data_root of the data set {config.get("type")} is {root!r}, but there is no such folder: '
            'put the data there, link it there, or set data_root in the config'
        )


def check_coco(file: str, content: bytes, classes: Collection[str] | None = None, training: bool = True) -> str:
    """Checks an annotation file in COCO's format. A JSON file in another format passes.

    Args:
        file (str): The path, for errors.
        content (bytes): The content of the file.
        classes (Collection[str], optional): The names of the categories that are used. Defaults to None, all.
        training (bool): Whether the file must contain objects. Defaults to True.

    Returns:
        str: The annotations that mmdet leaves out and the reasons, or ''.

    Raises:
        ValueError: mmdet would fail on the file or read it wrongly, or no object is left for training.
    """
    try:
        parts = json.loads(content.decode())
    except ValueError as error:
        raise ValueError(
            f'{file} is not JSON in UTF-8 ({error}): save it as UTF-8 without a byte order mark, or get it again'
        ) from error
    if not isinstance(parts, dict) or not parts.keys() & NEEDED.keys():
        return ''
    objects = parts.get('annotations') or []
    first = objects[0] if isinstance(objects, list) and objects else None
    if isinstance(first, dict) and not {'bbox', 'category_id'} & first.keys():
        return ''  # panoptic segments or captions
    for name, needed in NEEDED.items():
        if name != 'annotations':
            _check_entries(f'{file}: {name}', parts.get(name), needed)
        elif training or objects:
            _check_entries(f'{file}: {name}', objects, needed if training else (*needed, 'iscrowd'))
    names = tuple(entry['name'] for entry in parts['categories'])
    if classes is not None and not {*classes} & {*names}:
        raise ValueError(
            f'metainfo.classes has none of the categories of {file}, which are {list(names)}: write '
            f'metainfo=dict(classes={names}) in each data set of the config'
        )
    left_out, good, beyond = _sort_objects(file, parts, classes)
    note = ', '.join(f'{len(ids)} {reason} (such as that with the id {ids[0]!r})' for reason, ids in left_out.items())
    if training and not good:
        remedy = BBOX if 'bbox' in note else 'correct the file'
        raise ValueError(f'{file} has no object for training ({note or "no annotation is used"}): {remedy}')
    if beyond > good / 2:
        raise ValueError(
            f'{file}: {beyond} of {good} bboxes end outside their images: {BBOX}, and width and height of an image '
            'are those of its file'
        )
    return f'{file}: mmdet leaves out these annotations: {note}' if left_out.keys() - {CROWD} else ''


def _sort_objects(file: str, parts: dict, classes: Collection[str] | None) -> tuple[dict[str, list], int, int]:
    """Returns the ids left out by reason, the number of other objects, and how many of these end outside an image."""
    categories = {entry['id']: entry['name'] for entry in parts['categories']}
    images = {entry['id']: entry for entry in parts['images']}
    left_out: dict[str, list] = {}
    good = beyond = 0
    for entry in parts.get('annotations') or ():
        if (category := entry['category_id']) not in categories:
            raise ValueError(
                f'{file}: the annotation with the id {entry["id"]!r} has the category_id {category!r}, but the ids of '
                f'the categories are {[*categories]}: correct one of them'
            )
        if classes is not None and categories[category] not in classes:
            continue
        if reason := _why_left_out(entry, images.get(entry['image_id'])):
            left_out.setdefault(reason, []).append(entry['id'])
        else:
            good += 1
            beyond += _is_beyond(entry['bbox'], images[entry['image_id']])
    return left_out, good, beyond


def _check_entries(where: str, entries: Any, needed: Collection[str]) -> None:
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{where} must be a list with entries: add it to the file')
    for index, entry in enumerate(entries):
        if missing := [key for key in needed if not isinstance(entry, dict) or key not in entry]:
            raise ValueError(f'{where}[{index}] has no {" and no ".join(missing)}: add it to the entry')
        place = f'{where}[{index}], with the id {entry["id"]!r}, has'
        for key in ('width', 'height', 'area'):
            if key in needed and not _is_number(entry[key]):
                raise ValueError(f'{place} {key}={entry[key]!r}: it must be a number')
        box = entry.get('bbox', [0] * 4)
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise ValueError(f'{place} bbox={box!r}: {BBOX}, four finite numbers')
    repeated = [number for number, count in Counter(entry['id'] for entry in entries).items() if count > 1]
    if repeated:
        raise ValueError(
            f'{where} has several entries with the ids {repeated[:5]}, {len(repeated)} in all: give each its own id'
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and isfinite(value)


def _why_left_out(annotation: dict, image: dict | None) -> str:
    """Returns the reason for which mmdet does not train on an annotation, or ''."""
    if image is None:
        return 'have an image_id that no image has'
    x, y, width, height = annotation['bbox']
    if min(x + width, image['width']) <= max(x, 0) or min(y + height, image['height']) <= max(y, 0):
        return 'have a bbox that is empty or outside the image'
    if annotation['area'] <= 0 or width < 1 or height < 1:
        return 'have a bbox or an area of less than 1 pixel'
    return CROWD if annotation.get('iscrowd') or annotation.get('ignore') else ''


def _is_beyond(bbox: Collection[float], image: dict) -> bool:
    """Returns whether a box ends more than a pixel outside its image."""
    x, y, width, height = bbox
    return x < -1 or y < -1 or x + width > image['width'] + 1 or y + height > image['height'] + 1
