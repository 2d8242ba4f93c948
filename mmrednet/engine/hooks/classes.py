"""The hook that checks that labels and class names agree."""

from collections.abc import Iterator, Sequence

from mmengine.fileio import load
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop
from torch import nn

from ...registry import HOOKS

LEAVE_OUT = 'if this is intended, set default_hooks.check_classes=None'


@HOOKS.register_module()
class CheckClassesHook(Hook):
    """Refuses data sets whose labels do not mean what their class names say, before training or testing begins.

    The toolboxes exchange or drop classes without a message in these cases:

    - mmdet numbers the labels of a COCO file in the order of the file's categories, in which only categories that
      ``metainfo.classes`` names count, and names the labels in the order of ``metainfo.classes``;
    - mmpretrain numbers the labels of folders in the alphabetical order of the folders' names;
    - the data sets for training and validation, or the checkpoint and the data set for testing, number the same class
      differently;
    - the data sets for training and validation differ in mmseg's ``reduce_zero_label``;
    - a head of mmdet has fewer classes than the data set: it takes the next label for the background.
    """

    def before_run(self, runner) -> None:
        """Checks the data sets of the run, those inside wrappers too.

        Raises:
            ValueError: Labels and names of classes do not agree.
        """
        datasets = _collect(runner)
        categories: dict[str, dict[int, str]] = {}  # of files, several data sets may have the same
        for where, dataset in datasets:
            if isinstance(name := _classes(dataset), str):
                raise ValueError(
                    f'{where}: metainfo.classes is the text {name!r}, whose letters would be the names: write '
                    f'metainfo=dict(classes=({name!r},)), or the path of a file with a name in each line'
                )
            _check_coco(where, dataset, categories)
            _check_folders(where, dataset)
        for where, dataset in datasets[1:]:
            _check_pair(*datasets[0], where, dataset)
        scope = runner.default_scope
        if getattr(scope, 'scope_name', scope) == 'mmdet':
            for where, dataset in datasets:
                _check_heads(runner.model, where, dataset)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Compares the classes of a checkpoint that is tested or resumed with those of the data sets.

        Raises:
            ValueError: The same class has another label.
        """
        if isinstance(runner._train_loop, BaseLoop) and not runner._resume:
            return  # training from a checkpoint may have new classes
        meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
        for where, dataset in _collect(runner):
            _check_order('the checkpoint', meta.get('classes'), where, _classes(dataset))


def _collect(runner) -> list[tuple[str, object]]:
    """Returns the data sets that have been built, each with the name of its dataloader."""
    datasets = []
    for name in ('train', 'val', 'test'):
        loop = getattr(runner, f'_{name}_loop')  # the property would build the loop
        if isinstance(loop, BaseLoop):
            datasets += [(f'{name}_dataloader.dataset', part) for part in _unwrap(loop.dataloader.dataset)]
    return datasets


def _unwrap(dataset) -> Iterator:
    """Yields the data sets inside wrappers such as ``ConcatDataset`` and ``RepeatDataset``."""
    parts = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if all(hasattr(part, 'metainfo') for part in parts):
        for part in parts:
            yield from _unwrap(part)
    else:
        yield dataset


def _classes(dataset) -> Sequence[str] | None:
    return (getattr(dataset, 'metainfo', None) or {}).get('classes')


def _find_moved(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Returns the names that are in both lists, once in each, at different places."""
    first, second = ([str(name).casefold() for name in names] for names in (first, second))
    return [
        name
        for place, name in enumerate(first)
        if first.count(name) == second.count(name) == 1 and second.index(name) != place
    ]


def _check_coco(where: str, dataset, categories: dict[str, dict[int, str]]) -> None:
    ids, file, classes = (getattr(dataset, 'cat_ids', None), getattr(dataset, 'ann_file', None), _classes(dataset))
    if not ids or not file or not classes:
        return
    if file not in categories:
        content = load(file, backend_args=getattr(dataset, 'backend_args', None))
        categories[file] = {category['id']: category['name'] for category in content['categories']}
    names = categories[file]
    numbered = [names[number] for number in ids]
    if len(numbered) == len(classes) and not _find_moved(numbered, classes):
        return
    unknown = [name for name in classes if name not in names.values()]
    reason = f'{unknown} are no categories of the file; ' if unknown else ''
    example = tuple(numbered if not unknown else names.values())
    raise ValueError(
        f'{where}: the file {file} numbers its labels 0, 1, ... as {numbered}, but metainfo.classes is '
        f'{list(classes)}, so that classes would be exchanged or dropped. {reason}The file has the categories '
        f"{list(names.values())}. Write metainfo=dict(classes={example}) in the data set's config, or those of them "
        f'that you need in this order; {LEAVE_OUT}'
    )


def _check_folders(where: str, dataset) -> None:
    folders, classes = getattr(dataset, 'folder_to_idx', None), _classes(dataset)
    if folders and classes and _find_moved(ordered := sorted(folders, key=folders.__getitem__), classes):
        raise ValueError(
            f'{where}: the folders have the labels 0, 1, ... in the order {ordered}, but the classes are '
            f'{list(classes)}, so that names would be exchanged. Write metainfo=dict(classes={tuple(ordered)}) in the '
            f"data set's config, or leave it out; {LEAVE_OUT}"
        )


def _check_pair(where: str, dataset, other_where: str, other) -> None:
    _check_order(where, _classes(dataset), other_where, _classes(other))
    zeros = [getattr(part, 'reduce_zero_label', None) for part in (dataset, other)]
    if type(dataset) is type(other) and None not in zeros and zeros[0] != zeros[1]:
        raise ValueError(
            f'{where} has reduce_zero_label={zeros[0]} and {other_where} has {zeros[1]}, so that their labels differ '
            f'by one: write the same in both; {LEAVE_OUT}'
        )


def _check_order(where: str, classes: Sequence[str] | None, other_where: str, others: Sequence[str] | None) -> None:
    if classes and others and (moved := _find_moved(classes, others)):
        raise ValueError(
            f'{where} and {other_where} give the same class different labels: {moved}. The classes are '
            f'{list(classes)} and {list(others)}. Write the same metainfo=dict(classes=...) in both; for folders, make '
            f'a folder for each class in both; {LEAVE_OUT}'
        )


def _check_heads(model: nn.Module, where: str, dataset) -> None:
    metainfo = getattr(dataset, 'metainfo', None) or {}
    # A panoptic head has either things or stuff. With `return_classes` the classes are a text.
    if 'thing_classes' in metainfo or getattr(dataset, 'return_classes', False) or not metainfo.get('classes'):
        return
    classes = metainfo['classes']
    for name, module in model.named_modules():
        number = getattr(module, 'num_classes', None)
        is_head = type(module).__name__.endswith('Head') and 'rpn' not in name.lower()
        if is_head and isinstance(number, int) and number < len(classes):
            raise ValueError(
                f'model.{name} has num_classes={number}, but {where} has {len(classes)} classes, {list(classes)}: '
                f'objects of class {classes[number]!r} would be taken for background. Write '
                f'num_classes={len(classes)}; {LEAVE_OUT}'
            )
