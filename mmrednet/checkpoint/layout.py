"""The names and shapes in checkpoints of other layouts, and whether a checkpoint fits a model.

The parameters in the authors' checkpoints have the names and shapes of the models here. The other differences of mmcls
0.x, mmdet 2.x, mmseg 0.x, PaddleClas and plain PyTorch programs are rows of one table. The runner, ``init_cfg`` of
RedNet and ``python -m mmrednet convert`` share it.
"""

import copy
import math
import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Sequence

from mmengine.logging import print_log
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import printable
from ..layers import Involution

# The keys under which programs store the parameters. The first that a checkpoint has counts.
SECTIONS = ('pdparams', 'state_dict', 'model_state_dict', 'model', 'module', 'net')
# Patterns in the old names, and their replacements. None: the entry is left out.
RENAMED = (
    # PaddleClas' RedNet is a classifier whose backbone has no prefix.
    (r'^pdparams\.(.*)\._mean$', r'pdparams.\1.running_mean'),
    (r'^pdparams\.(.*)\._variance$', r'pdparams.\1.running_var'),
    (r'^pdparams\.fc\.', 'state_dict.head.fc.'),
    (r'^pdparams\.', 'state_dict.backbone.'),
    # torchvision, DeepSpeed and others.
    (r'^(model_state_dict|model|module|net)\.', 'state_dict.'),
    # The prefixes of DataParallel and torch.compile, which can be nested.
    (r'^state_dict\.((module|_orig_mod)\.)+', 'state_dict.'),
    # The averages of mmcv 1.x. It exchanges them with the parameters before it saves, so these are the raw values.
    (r'^state_dict\.ema_[^.]*$', None),
    # mmengine has the classes and the palette of the old toolboxes in `dataset_meta`.
    (r'^meta\.CLASSES$', 'meta.dataset_meta.classes'),
    (r'^meta\.PALETTE$', 'meta.dataset_meta.palette'),
)
NAMES_IN_AN_ERROR = 3


def convert(checkpoint: dict, prefix: str = '') -> tuple[dict, dict[str, str]]:
    """Brings a checkpoint of any layout to mmengine's.

    Args:
        checkpoint (dict): The result of :func:`mmrednet.checkpoint.read`: a dict with the parameters under one of
            ``SECTIONS``, or the parameters alone. It is not changed.
        prefix (str): If it is given, only the parameters are kept whose names begin with it, without it. Defaults to
            ``''``.

    Returns:
        tuple: The checkpoint with ``state_dict`` and ``meta``, and the old and new paths of the entries that were
        renamed. The new path is ``''`` where an entry was left out.

    Raises:
        ValueError: ``checkpoint`` holds no parameters, or two of them get the same name.
    """
    section, old, converted = _find_parameters(checkpoint)
    renamed = {}

    def rename(key):
        new = key
        for pattern, replacement in RENAMED:
            if replacement is None and re.match(pattern, new):
                new = ''
            new = re.sub(pattern, replacement or '', new)
        if new.startswith('state_dict.') and prefix:
            name = new.removeprefix('state_dict.')
            new = f'state_dict.{name.removeprefix(prefix)}' if name.startswith(prefix) else ''
        if new != key:
            renamed[key] = new
        return new

    pairs = [(rename(f'{section}.{key}').removeprefix('state_dict.'), value) for key, value in old.items()]
    pairs = [pair for pair in pairs if pair[0]]
    state_dict = converted['state_dict'] = OrderedDict(pairs)
    if len(state_dict) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f'two parameters of the checkpoint get the name {printable(twice)}: remove one of them')
    # Module versions, by which modules rename their own old parameters.
    state_dict._metadata = getattr(old, '_metadata', OrderedDict())  # type: ignore[attr-defined]
    meta = converted.get('meta') or {}
    meta = converted['meta'] = dict(meta) if isinstance(meta, dict) else dict(meta=meta)
    for key in list(meta):
        _, moved, name = rename(f'meta.{key}').partition('meta.dataset_meta.')
        if moved:
            meta['dataset_meta'] = {**meta.get('dataset_meta', {}), name: meta.pop(key)}
    return converted, renamed


def _find_parameters(checkpoint: dict) -> tuple[str, dict, dict]:
    """Returns the key of the parameters, the parameters, and a copy of the checkpoint without them."""
    if not isinstance(checkpoint, dict):
        found = type(checkpoint).__name__
    else:
        for section in SECTIONS:
            old = checkpoint.get(section)
            if isinstance(old, dict) and all(isinstance(key, str) for key in old):
                return section, old, {key: value for key, value in checkpoint.items() if key != section}
        named = all(isinstance(key, str) for key in checkpoint)
        if named and (any(isinstance(value, Tensor) for value in checkpoint.values()) or not checkpoint):
            return 'state_dict', checkpoint, {}
        found = ', '.join(printable(repr(key), 50) for key in list(checkpoint)[:10])
    raise ValueError(
        f'a checkpoint must hold parameters by name, under one of {", ".join(SECTIONS)} or alone, but this one holds '
        f'{found}: give a file of mmengine, mmcls 0.x, mmdet 2.x, mmseg 0.x or PaddleClas, or save its parameters '
        "with `torch.save(dict(state_dict=...), 'F.pth')`"
    )


def widen(model: nn.Module, state_dict: OrderedDict, source: str) -> OrderedDict:
    """Fits involutions with a smaller odd window to a model with a larger one, as in the stem for dense prediction.

    Eq. 6 generates one kernel channel for each tap, in the order (G, Kh, Kw). The taps go to the centre of the window,
    and the others generate zeros. So the layer computes exactly the same as with the smaller window.

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
            f'{source}: widened the window of {layers}. The taps are in its centre and the others are zero, so the '
            'features are exactly the same.',
            logger='current',
        )
    return state_dict


class _Loading(nn.Module):
    """Lets the modules of a model load a checkpoint's parameters. Modules may rename parameters when they load."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, state_dict: OrderedDict) -> None:
        metadata = getattr(state_dict, '_metadata', {})
        for name, module in self.model.named_modules(remove_duplicate=False):
            prefix = f'{name}.' if name else ''
            module._load_from_state_dict(state_dict, prefix, metadata.get(name, {}), True, [], [], [])


def renamed_by(model: nn.Module, state_dict: OrderedDict) -> OrderedDict:
    """Returns a checkpoint's parameters with the names that the model's modules give them when they load.

    For example, a model with a teacher and a student loads the checkpoint of a single detector. The parameters of
    ``model`` are not changed.
    """
    state_dict, loading = copy.copy(state_dict), _Loading(model)
    tensors = (*loading.named_parameters(), *loading.named_buffers())
    nowhere = {name: tensor.detach().to('meta') for name, tensor in tensors}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch warns that copying to a meta tensor does nothing
        functional_call(loading, nowhere, (state_dict,))
    return state_dict


def check(
    model: nn.Module, state_dict: OrderedDict, source: str, remedy: str, may_differ: Sequence[str] = ()
) -> OrderedDict:
    """Compares a checkpoint's parameters with a model's, before any of them is loaded.

    The counters of norm layers, ``num_batches_tracked``, may be missing, since old versions of PyTorch had none.

    Args:
        model (nn.Module): The model that will load them.
        state_dict (OrderedDict): The checkpoint's parameters by name, see :func:`convert`.
        source (str): The checkpoint's path, for the error.
        remedy (str): What to do about an error.
        may_differ (Sequence[str]): Beginnings of names that may be missing, unexpected or of another shape.
            Defaults to ``()``.

    Returns:
        OrderedDict: ``state_dict`` with the model's names, without the entries of ``may_differ`` that do not fit.

    Raises:
        ValueError: Names are missing or unexpected, or parameters have another shape.
    """
    own, state_dict = model.state_dict(), renamed_by(model, state_dict)
    missing = [key for key in own if key not in state_dict and not key.endswith('num_batches_tracked')]
    unexpected = [key for key in state_dict if key not in own]
    # The extra state of a module can be anything, also an object without a shape.
    shapes = [{key: getattr(value, 'shape', None) for key, value in values.items()} for values in (own, state_dict)]
    misshapen = [key for key in own if key in state_dict and shapes[0][key] != shapes[1][key]]
    matching = copy.copy(state_dict)
    for key in unexpected + misshapen:
        if key.startswith(tuple(may_differ)):
            del matching[key]

    def describe(key):
        if key in misshapen:
            expected, found = ('no tensor' if s[key] is None else tuple(s[key]) for s in shapes)
            return f'{printable(key, 100)} is {found} and should be {expected}'
        return printable(key, 100)

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
        if prefix := _find_prefix(own, state_dict):
            remedy = (
                f'all fit without {prefix!r} before their names: `python -m mmrednet convert {source} OUT.pth --prefix '
                f'{prefix}` writes them so'
            )
        raise ValueError('\n'.join([head, *problems, remedy]))
    return matching


def _find_prefix(own: dict, state_dict: dict) -> str:
    """Returns a prefix without which a checkpoint's names are the model's, such as ``student.``, or ``''``."""
    first = next(iter(own), '')
    needed = [key for key in own if not key.endswith('num_batches_tracked')]
    for key in state_dict:
        prefix = key.removesuffix(first)
        if key.endswith(f'.{first}') and all(prefix + name in state_dict for name in needed):
            return prefix
    return ''
