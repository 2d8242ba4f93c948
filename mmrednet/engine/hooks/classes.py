"""The hook that checks that class names match the labels."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop
from torch import nn

from ...errors import printable
from ...inference.names import count_classes
from ...registry import HOOKS

LEAVE_OUT = 'if this is intended, set default_hooks.check_classes=None'


@HOOKS.register_module()
class CheckClassesHook(Hook):
    """Stops a run before training or testing begins if class names do not match the labels.

    The toolboxes give no message in these cases:

    - mmdet numbers the categories of a COCO file in the order of the file, but takes their names in the order of
      ``metainfo.classes``, and leaves out the annotations of a category whose name is spelt differently there.
    - mmpretrain numbers folders in alphabetical order, but takes their names in the order of ``metainfo.classes``.
    - The data sets for training and validation, or the checkpoint and the data set, give a class different labels.
    - ``num_classes`` of the model is not the number of classes. mmdet then reads the label of the last class as the
      background, or trains outputs for classes that do not exist.
    - ``metainfo.classes`` is a string, so that each letter is a name: ``('cat')`` for ``('cat',)``.

    The check includes data sets inside wrappers such as ``ConcatDataset``. It skips data sets of other formats, and
    data sets with ``return_classes=True``, whose labels are positions in a text.
    """

    def before_run(self, runner) -> None:
        """Checks the data sets that the runner has built.

        Raises:
            ValueError: Class names do not match the labels, or their number is not the model's number of classes.
        """
        datasets = _find_named(runner)
        files: dict[str, dict[int, str]] = {}  # several data sets may have the same file
        for where, dataset in datasets:
            if isinstance(classes := dataset.metainfo['classes'], str):
                raise ValueError(
                    f'{where}: metainfo.classes is the string {classes!r}, so that each letter is a name: write '
                    f'metainfo=dict(classes=({classes!r},)), or the path of a file with one name in each line'
                )
            if has_coco_file(dataset):
                if dataset.ann_file not in files:
                    backend = getattr(dataset, 'backend_args', None)
                    files[dataset.ann_file] = _read_categories(dataset.ann_file, backend)
                _check_coco(where, dataset, files[dataset.ann_file])
            elif folders := getattr(dataset, 'folder_to_idx', None):
                _check_folders(where, sorted(folders, key=folders.__getitem__), classes)
        if datasets and datasets[0][0].startswith('train'):
            _check_number(runner.model, *datasets[0])
            for where, dataset in datasets[1:]:
                _check_same('the data set for training', datasets[0][1].metainfo['classes'], where, dataset)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Compares the classes of a checkpoint that is tested or resumed with those of the data sets.

        Raises:
            ValueError: A class has another label.
        """
        if isinstance(runner._train_loop, BaseLoop) and not runner._resume:
            return  # Training that starts from a checkpoint may have other classes.
        classes = ((checkpoint.get('meta') or {}).get('dataset_meta') or {}).get('classes')
        if isinstance(classes, list | tuple):
            for where, dataset in _find_named(runner):
                _check_same('the checkpoint', classes, where, dataset)


def find_datasets(runner) -> list[tuple[str, Any]]:
    """Returns the data sets that have been built, without wrappers, each with the entry of the config that it is in."""
    datasets = []
    for name in ('train', 'val', 'test'):
        loop = getattr(runner, f'_{name}_loop')  # the property without the underscore would build the loop
        if isinstance(loop, BaseLoop):
            datasets += [(f'{name}_dataloader.dataset', part) for part in _unwrap(loop.dataloader.dataset)]
    return datasets


def has_coco_file(dataset) -> bool:
    """Returns whether mmdet has read a data set from an annotation file in COCO's format."""
    return isinstance(getattr(dataset, 'cat_ids', None), list) and bool(getattr(dataset, 'ann_file', None))


def _find_named(runner) -> list[tuple[str, Any]]:
    """Returns the data sets with names of classes that belong to labels."""
    return [
        (where, dataset)
        for where, dataset in find_datasets(runner)
        if (getattr(dataset, 'metainfo', None) or {}).get('classes') and not getattr(dataset, 'return_classes', False)
    ]


def _unwrap(dataset) -> Iterator:
    """Yields the data sets inside wrappers."""
    parts = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if all(hasattr(part, 'metainfo') for part in parts):
        for part in parts:
            yield from _unwrap(part)
    else:
        yield dataset


def _read_categories(file: str, backend_args: dict | None) -> dict[int, str]:
    """Returns the names of a COCO file's categories by id; empty if it has another format.

    mmdet does not keep these names. Parsing the annotations of a large file takes long, so they are skipped.
    """
    try:
        content = get(file, backend_args=backend_args)
        begins = [match.end() for match in re.finditer(rb'"categories"\s*:\s*', content)]
        if len(begins) == 1:
            categories, _ = json.JSONDecoder().raw_decode(content[begins[0] :].decode())
        else:
            categories = json.loads(content)['categories']
        return {category['id']: category['name'] for category in categories}
    except (OSError, ValueError, KeyError, TypeError):  # The data set could read it, so it has another format.
        return {}


def _find_moved(labelled: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Returns the names that are in both lists, but not at the same place."""
    known = set(classes)
    return [name for label, name in enumerate(labelled) if name in known and list(classes[label : label + 1]) != [name]]


def _check_coco(where: str, dataset, categories: dict[int, str]) -> None:
    """Compares the order of ``cat_ids``, which gives the labels, with the order of the names."""
    if not categories or any(number not in categories for number in dataset.cat_ids):
        return
    classes, labelled = dataset.metainfo['classes'], [categories[number] for number in dataset.cat_ids]
    absent = [name for name in classes if name not in categories.values()]
    left_out = {_simplify(name): name for name in categories.values() if name not in labelled}
    misspelt = {name: left_out[_simplify(name)] for name in absent if _simplify(name) in left_out}
    if labelled and not misspelt and not _find_moved(labelled, classes):
        return
    reason = f'The file has no category {absent}. ' if absent else ''
    if repeated := sorted({name for name in labelled if labelled.count(name) > 1}):
        reason += f'The file has several categories named {repeated}: merge them in the file. '
    known = {*classes, *misspelt.values()}
    ordered = [name for name in dict.fromkeys(categories.values()) if name in known or not labelled]
    raise ValueError(
        f'{where}: the labels do not match the class names. In the order of the categories in {dataset.ann_file}, the '
        f'labels 0, 1, ... are {labelled}, but metainfo.classes is {list(classes)}. {reason}Write '
        f'metainfo=dict(classes={tuple(ordered)}) in each data set of the config; {LEAVE_OUT}'
    )


def _simplify(name: str) -> str:
    return str(name).casefold().replace('_', ' ').strip()


def _check_folders(where: str, folders: Sequence[str], classes: Sequence[str]) -> None:
    if _find_moved(folders, classes):
        raise ValueError(
            f'{where}: the labels do not match the class names. In alphabetical order of the folders, the labels 0, 1, '
            f'... are {list(folders)}, but metainfo.classes is {list(classes)}. Write '
            f'metainfo=dict(classes={tuple(folders)}) in the data set of the config, or leave it out; {LEAVE_OUT}'
        )


def _check_number(model: nn.Module, where: str, dataset) -> None:
    """Compares the number of classes with those of the model's heads."""
    classes, sizes = dataset.metainfo['classes'], count_classes(model)
    if sizes and len(classes) not in sizes:
        raise ValueError(
            f'{where}: the number of classes is {len(classes)}, {printable(list(classes))}, but num_classes of the '
            f'model is {" or ".join(map(str, sorted(sizes)))}: correct one of them; {LEAVE_OUT}'
        )


def _check_same(other: str, others: Sequence[str], where: str, dataset) -> None:
    """Compares two orders of the same classes, or of some of them."""
    classes = dataset.metainfo['classes']
    moved: list[str] = []
    for form in (str, _simplify):  # the order of folders depends on upper case: Star, disc, but disc, star
        one, two = [*map(form, classes)], [*map(form, others)]
        if {*one} <= {*two} or {*two} <= {*one}:
            moved = moved or _find_moved(one, two)
    if moved:
        raise ValueError(
            f'{other} and {where} give {moved} different labels: the classes are {list(others)} and {list(classes)}. '
            'Write the same metainfo=dict(classes=...) in both, and give both data sets the same categories in the '
            f'same order (for folders: a folder for each class); {LEAVE_OUT}'
        )
