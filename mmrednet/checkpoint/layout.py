"""The names and shapes in checkpoints of other layouts, and whether a checkpoint fits a model.

The authors' checkpoints name and shape their parameters as the models here do. What else is named otherwise in the old
layouts of mmcls 0.x, mmdet 2.x and mmseg 0.x, and in PaddleClas', is in one table, which the runner, ``init_cfg`` of
RedNet and ``tools/convert_checkpoint.py`` share.
"""

import copy
import math
import re
import warnings
from collections import OrderedDict
from collections.abc import Sequence

from mmengine.logging import print_log
from torch import nn
from torch.func import functional_call

from ..layers import Involution

# Patterns in the old names, and what takes their place.
RENAMED = (
    # PaddleClas' RedNet, a classifier whose backbone has no name.
    (r'^pdparams\.(.*)\._mean$', r'pdparams.\1.running_mean'),
    (r'^pdparams\.(.*)\._variance$', r'pdparams.\1.running_var'),
    (r'^pdparams\.fc\.', 'state_dict.head.fc.'),
    (r'^pdparams\.', 'state_dict.backbone.'),
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
        checkpoint (dict): A checkpoint as it was loaded: with ``state_dict``, with ``pdparams`` (see
            ``mmrednet.checkpoint.paddle``) or parameters alone. It stays as it is.

    Returns:
        tuple: The checkpoint with ``state_dict`` and ``meta``, and what was renamed, from old to new path in it.

    Raises:
        ValueError: ``checkpoint`` is no checkpoint.
    """
    section = 'pdparams' if isinstance(checkpoint, dict) and 'pdparams' in checkpoint else 'state_dict'
    converted = dict(checkpoint) if isinstance(checkpoint, dict) and section in checkpoint else {section: checkpoint}
    old = converted.pop(section)
    if not isinstance(old, dict) or not all(isinstance(key, str) for key in old):
        raise ValueError(
            f'checkpoint must hold parameters by name, but holds {type(old).__name__}: give a file that mmengine, '
            'mmcls 0.x, mmdet 2.x, mmseg 0.x or PaddleClas saved'
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
        (rename(f'{section}.{key}').removeprefix('state_dict.'), value) for key, value in old.items()
    )
    # Module versions, by which modules mend their own old names.
    state_dict._metadata = getattr(old, '_metadata', OrderedDict())  # type: ignore[attr-defined]
    meta = converted['meta'] = dict(converted.get('meta') or {})
    for key in list(meta):
        _, moved, name = rename(f'meta.{key}').partition('meta.dataset_meta.')
        if moved:
            meta['dataset_meta'] = {**meta.get('dataset_meta', {}), name: meta.pop(key)}
    return converted, renamed


def widen(model: nn.Module, state_dict: OrderedDict, source: str) -> OrderedDict:
    """Fits involutions of a smaller odd window to a model whose window is larger, as the stem's in dense prediction is.

    The taps (eq. 6 generates one kernel channel for each, ordered as (G, Kh, Kw)) go to the centre of the window, and
    the rest generate zeros. So the layer computes exactly what it did with the smaller window.

    Args:
        model (nn.Module): The model that will load the parameters.
        state_dict (OrderedDict): The checkpoint's parameters by name. It stays as it is.
        source (str): The checkpoint's path, for the log.

    Returns:
        OrderedDict: ``state_dict`` with the wider windows.
    """
    state_dict, widened = copy.copy(state_dict), {}
    for name, layer in model.named_modules():
        span = layer.last_convolution() if isinstance(layer, Involution) else None
        if span is None or not all(size % 2 for size in layer.kernel_size):
            continue
        prefix = next(key for key, module in layer.named_modules(prefix=name) if module is span)
        for key in (f'{prefix}.weight', f'{prefix}.bias'):
            if key not in state_dict or not state_dict[key].dim():
                continue
            old, (height, width) = state_dict[key], layer.kernel_size
            size = math.isqrt(len(old) // layer.groups)
            smaller = size <= min(height, width) and size < max(height, width)
            if layer.groups * size * size != len(old) or size % 2 == 0 or not smaller:
                continue
            top, left = (height - size) // 2, (width - size) // 2
            new = old.new_zeros(layer.groups, height, width, *old.shape[1:])
            new[:, top : top + size, left : left + size] = old.unflatten(0, (layer.groups, size, size))
            state_dict[key] = new.flatten(0, 2)
            widened[name] = f'{name} ({size}x{size} to {height}x{width})'
    if widened:
        layers = ', '.join([*widened.values()][:NAMES_IN_AN_ERROR]) + ', ...' * (len(widened) > NAMES_IN_AN_ERROR)
        print_log(
            f'{source}: widened the window of {layers}: the taps went to its centre and the others are zero, so the '
            'features stay exactly the same.',
            logger='current',
        )
    return state_dict


class _Loading(nn.Module):
    """Has a model's modules load a checkpoint's parameters, which they may rename in it on the way."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, state_dict: OrderedDict) -> None:
        metadata = getattr(state_dict, '_metadata', {})
        for name, module in self.model.named_modules(remove_duplicate=False):
            prefix = f'{name}.' if name else ''
            module._load_from_state_dict(state_dict, prefix, metadata.get(name, {}), True, [], [], [])


def renamed_by(model: nn.Module, state_dict: OrderedDict) -> OrderedDict:
    """Returns a checkpoint's parameters by the names that the model's modules give them when they load.

    A teacher with its student takes those of a single detector, for example. The model's own stay as they are.
    """
    state_dict, loading = copy.copy(state_dict), _Loading(model)
    tensors = (*loading.named_parameters(), *loading.named_buffers())
    nowhere = {name: tensor.detach().to('meta') for name, tensor in tensors}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that nothing is copied to where nothing is
        functional_call(loading, nowhere, (state_dict,))
    return state_dict


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
        OrderedDict: ``state_dict`` with the model's names, without what it cannot load of ``may_differ``.

    Raises:
        ValueError: Names are missing or unexpected, or parameters have another shape.
    """
    own, state_dict = model.state_dict(), renamed_by(model, state_dict)
    missing = [key for key in own if key not in state_dict and not key.endswith('num_batches_tracked')]
    unexpected = [key for key in state_dict if key not in own]
    # What modules keep besides tensors has no shape.
    shapes = [{key: getattr(value, 'shape', None) for key, value in values.items()} for values in (own, state_dict)]
    misshapen = [key for key in own if key in state_dict and shapes[0][key] != shapes[1][key]]
    matching = copy.copy(state_dict)
    for key in unexpected + misshapen:
        if key.startswith(tuple(may_differ)):
            del matching[key]

    def describe(key):
        if key in misshapen:
            expected, found = ('no tensor' if s[key] is None else tuple(s[key]) for s in shapes)
            return f'{key} is {found} and should be {expected}'
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
