"""Checkpoints of mmcls 0.x, mmdet 2.x and mmseg 0.x, and whether a checkpoint fits a model.

The authors' checkpoints name and shape their parameters as the models here do. What else is named otherwise in the old
layouts is in one table, which the runner, ``init_cfg`` of RedNet and ``tools/convert_checkpoint.py`` share.
"""

import copy
import re
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

# Patterns in the old names, and what takes their place.
RENAMED = (
    # DataParallel's prefix.
    (r'^state_dict\.module\.', 'state_dict.'),
    # What the toolboxes saved of the data set, and where mmengine does.
    (r'^meta\.CLASSES$', 'meta.dataset_meta.classes'),
    (r'^meta\.PALETTE$', 'meta.dataset_meta.palette'),
)
NAMES_IN_AN_ERROR = 3


def convert(checkpoint: dict) -> tuple[dict, dict[str, str]]:
    """Brings a checkpoint of any layout to mmengine's.

    Args:
        checkpoint (dict): A checkpoint as it was loaded: with ``state_dict`` or parameters alone. It stays as it is.

    Returns:
        tuple: The checkpoint with ``state_dict`` and ``meta``, and what was renamed, from old to new path in it.

    Raises:
        ValueError: ``checkpoint`` is no checkpoint.
    """
    converted = dict(checkpoint) if 'state_dict' in checkpoint else dict(state_dict=checkpoint)
    old = converted['state_dict']
    if not isinstance(old, dict) or not all(isinstance(key, str) for key in old):
        raise ValueError(
            f'checkpoint must hold parameters by name, but holds {type(old).__name__}: give a file that mmengine, '
            'mmcls 0.x, mmdet 2.x or mmseg 0.x saved'
        )
    renamed = {}

    def rename(key):
        new = key
        for pattern, replacement in RENAMED:
            new = re.sub(pattern, replacement, new)
        if new != key:
            renamed[key] = new
        return new

    state_dict = converted['state_dict'] = OrderedDict(
        (rename(f'state_dict.{key}').removeprefix('state_dict.'), value) for key, value in old.items()
    )
    # Module versions, by which modules mend their own old names.
    state_dict._metadata = getattr(old, '_metadata', OrderedDict())
    meta = converted['meta'] = dict(converted.get('meta') or {})
    for key in list(meta):
        _, moved, name = rename(f'meta.{key}').partition('meta.dataset_meta.')
        if moved:
            meta['dataset_meta'] = {**meta.get('dataset_meta', {}), name: meta.pop(key)}
    return converted, renamed


def check(
    model: nn.Module, state_dict: OrderedDict, source: str, remedy: str, may_differ: Sequence[str] = ()
) -> OrderedDict:
    """Compares a checkpoint's parameters with a model's, before any of them is loaded.

    The counters of norm layers, ``num_batches_tracked``, may be missing: old versions of PyTorch had none.

    Args:
        model (nn.Module): The model that will load them.
        state_dict (OrderedDict): The checkpoint's parameters by name, see :func:`convert`.
        source (str): The checkpoint's path, for the error.
        remedy (str): What to do about an error.
        may_differ (Sequence[str]): Beginnings of names that may be missing, unexpected or of another shape.
            Defaults to ``()``.

    Returns:
        OrderedDict: ``state_dict`` without what the model cannot load of ``may_differ``.

    Raises:
        ValueError: Names are missing or unexpected, or parameters have another shape.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state_dict and not key.endswith('num_batches_tracked')]
    unexpected = [key for key in state_dict if key not in own]
    misshapen = [key for key in own if key in state_dict and own[key].shape != state_dict[key].shape]
    matching = copy.copy(state_dict)
    for key in unexpected + misshapen:
        if key.startswith(tuple(may_differ)):
            del matching[key]

    def describe(key):
        if key in misshapen:
            return f'{key} is {tuple(state_dict[key].shape)} and should be {tuple(own[key].shape)}'
        return key

    problems = []
    for what, keys in (
        ('missing in the checkpoint', missing),
        ('unexpected, since the model has no such name', unexpected),
        ('misshapen', misshapen),
    ):
        keys = [key for key in keys if not key.startswith(tuple(may_differ))]
        if keys:
            names = ', '.join(describe(key) for key in keys[:NAMES_IN_AN_ERROR])
            more = ', ...' if len(keys) > NAMES_IN_AN_ERROR else ''
            problems.append(f'  {len(keys)} {what}: {names}{more}')
    if problems:
        head = f'the checkpoint {source} does not fit {type(model).__name__}, so nothing of it was loaded:'
        raise ValueError('\n'.join([head, *problems, remedy]))
    return matching
