"""Converts checkpoints of other layouts, and checks whether a checkpoint fits a model.

The parameters in the authors' checkpoints have the names and shapes of the models here. One table lists the other
differences of mmcls 0.x, mmdet 2.x, mmseg 0.x, PaddleClas and plain PyTorch programs. The runner, ``init_cfg``
and ``python -m mmrednet convert`` use it.
"""

import copy
import math
import re
import warnings
from collections import OrderedDict
from collections.abc import Sequence

from mmengine.logging import print_log
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import printable
from ..layers import Involution

# The keys under which programs store the parameters. The first one that a checkpoint has is used.
SECTIONS = ('pdparams', 'state_dict', 'model_state_dict', 'model', 'module', 'net')
# Patterns in the old names, and their replacements. An entry whose new name is empty is left out.
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
    # The EMA of mmcv 1.x. It exchanges averages and parameters before it saves, so these are the values without EMA.
    (r'^state_dict\.ema_[^.]*$', ''),
    # mmengine stores the classes and the palette in `dataset_meta`.
    (r'^meta\.CLASSES$', 'meta.dataset_meta.classes'),
    (r'^meta\.PALETTE$', 'meta.dataset_meta.palette'),
)
# SAN, AA-ResNet-50 and axial26s are released as classifiers whose backbone has no prefix. This name shows it.
CLASSIFIER = (
    r'((module|_orig_mod)\.)*(conv_in|layer2\.0\.conv2\.conv_kqv|layer1\.0\.hight_block\.qkv_transform)\.weight'
)
OF_CLASSIFIERS = (
    (r'^state_dict\.fc\.', 'state_dict.head.fc.'),
    (r'^state_dict\.(?!head\.fc\.)', 'state_dict.backbone.'),
    # The spelling of axial26s, and its indices, which the layer computes.
    (r'\.hight_block\.', '.height_block.'),
    (r'^state_dict\..*_block\.flatten_index$', ''),
)
NAMES_IN_AN_ERROR = 3


def convert(checkpoint: dict, prefix: str = '') -> tuple[dict, dict[str, str]]:
    """Brings a checkpoint of any layout to mmengine's.

    Args:
        checkpoint (dict): The result of :func:`mmrednet.checkpoint.read`: a dict with the parameters under one of
            ``SECTIONS``, or the parameters alone. It is not changed.
        prefix (str): Parameters whose names do not begin with it are left out. It is removed from the others. Defaults
            to ``''``.

    Returns:
        tuple: The checkpoint with ``state_dict`` and ``meta``, and a dict from the old to the new paths of renamed
        entries. The new path is ``''`` if an entry was left out.

    Raises:
        ValueError: ``checkpoint`` holds no parameters, or two of them get the same name.
    """
    section, old, converted = _find_parameters(checkpoint)
    start = re.escape(prefix)
    rows = (*RENAMED, *OF_CLASSIFIERS) if any(re.fullmatch(CLASSIFIER, key) for key in old) else RENAMED
    patterns = (*rows, (rf'(?s)^state_dict\.(?!{start}).*', ''), (rf'^state_dict\.{start}', 'state_dict.'))
    renamed = {}

    def rename(key):
        new = key
        for pattern, replacement in patterns:
            new = re.sub(pattern, replacement, new)
        if new != key:
            renamed[key] = new
        return new

    state_dict: OrderedDict = OrderedDict()
    for key, value in old.items():
        name = rename(f'{section}.{key}').removeprefix('state_dict.')
        if name in state_dict:
            raise ValueError(f'two parameters of the checkpoint get the name {printable(name)}: remove one of them')
        if name:
            state_dict[name] = value
    # The versions of modules. With them, modules rename parameters of their older versions.
    state_dict._metadata = getattr(old, '_metadata', OrderedDict())  # type: ignore[attr-defined]
    meta = converted.get('meta') or {}
    meta = dict(meta) if isinstance(meta, dict) else dict(meta=meta)
    for key in list(meta):
        _, moved, name = rename(f'meta.{key}').partition('meta.dataset_meta.')
        if moved:
            meta['dataset_meta'] = {**meta.get('dataset_meta', {}), name: meta.pop(key)}
    return {**converted, 'state_dict': state_dict, 'meta': meta}, renamed


def _find_parameters(checkpoint: dict) -> tuple[str, dict, dict]:
    """Returns the key of the parameters, the parameters, and a copy of the checkpoint without them."""
    found = type(checkpoint).__name__
    if isinstance(checkpoint, dict):
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
    """Widens the windows of a checkpoint's involutions to a model's, as in the stem for dense prediction.

    Eq. 6 generates one kernel channel for each tap, in the order (G, Kh, Kw). The taps of the smaller window go to the
    centre of the larger one, and the other taps are zero. So the layer computes exactly the same as before. Both
    windows must be odd.

    Args:
        model (nn.Module): The model that will load the parameters.
        state_dict (OrderedDict): The checkpoint's parameters by name. It stays as it is.
        source (str): The checkpoint's path, for the log.

    Returns:
        OrderedDict: ``state_dict`` with the wider windows.
    """
    state_dict, widened = copy.copy(state_dict), {}
    for name, layer in model.named_modules():
        if not isinstance(layer, Involution):
            continue
        generator, (height, width) = layer.last_convolution(), layer.kernel_size
        prefixes = [prefix for prefix, module in layer.named_modules(prefix=name) if module is generator]
        for key in (f'{prefix}.{kind}' for prefix in prefixes for kind in ('weight', 'bias')):
            if key not in state_dict:
                continue
            old = state_dict[key]
            size = math.isqrt(len(old) // layer.groups)
            smaller = size <= min(height, width) and size < max(height, width)
            all_odd = size * height * width % 2
            if smaller and all_odd and len(old) == layer.groups * size * size:
                top, left = (height - size) // 2, (width - size) // 2
                new = old.new_zeros(layer.groups, height, width, *old.shape[1:])
                new[:, top : top + size, left : left + size] = old.unflatten(0, (layer.groups, size, size))
                state_dict[key] = new.flatten(0, 2)
                widened[name] = f'{name} ({size}x{size} to {height}x{width})'
    if widened:
        print_log(
            f'{source}: widened the window of {", ".join(widened.values())}. The taps are in its centre and the others '
            'are zero, so the features are exactly the same.',
            logger='current',
        )
    return state_dict


class _Loading(nn.ModuleList):
    """Lets the modules of a model load a checkpoint's parameters. Modules may rename parameters when they load."""

    def forward(self, state_dict: OrderedDict) -> None:
        metadata = getattr(state_dict, '_metadata', {})
        for name, module in self[0].named_modules(remove_duplicate=False):
            prefix = f'{name}.' if name else ''
            module._load_from_state_dict(state_dict, prefix, metadata.get(name, {}), True, [], [], [])


def renamed_by(model: nn.Module, state_dict: OrderedDict) -> OrderedDict:
    """Returns parameters with the names that a model's modules give them when they load. The model stays as it is.

    For example, a model with a teacher and a student loads the checkpoint of a single detector.
    """
    state_dict, loading = copy.copy(state_dict), _Loading([model])
    tensors = (*loading.named_parameters(), *loading.named_buffers())
    nowhere = {name: tensor.detach().to('meta') for name, tensor in tensors}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch warns that copying to a meta tensor does nothing
        functional_call(loading, nowhere, (state_dict,))
    return state_dict


def check(
    model: nn.Module, state_dict: OrderedDict, source: str, remedy: str, may_differ: Sequence[str] = ()
) -> OrderedDict:
    """Checks that a checkpoint's parameters fit a model, before any of them is loaded.

    The counters of norm layers, ``num_batches_tracked``, may be missing, since old versions of PyTorch had none.

    Args:
        model (nn.Module): The model that will load them.
        state_dict (OrderedDict): The checkpoint's parameters by name, see :func:`convert`.
        source (str): The checkpoint's path, for the error.
        remedy (str): What to do about an error.
        may_differ (Sequence[str]): Prefixes of names that may be missing, unexpected or of another shape.
            Defaults to ``()``.

    Returns:
        OrderedDict: ``state_dict`` with the model's names, without the entries of ``may_differ`` that do not fit.

    Raises:
        ValueError: Names are missing or unexpected, or parameters have another shape.
    """
    own, state_dict = model.state_dict(), renamed_by(model, state_dict)
    needed = [key for key in own if not key.endswith('num_batches_tracked')]
    shared = [key for key in own if key in state_dict]
    found = {
        'missing in the checkpoint': {key: '' for key in needed if key not in state_dict},
        'unexpected, since the model has no such name': {key: '' for key in state_dict if key not in own},
        'of another shape': {
            key: f' is {_shape(state_dict[key])} and should be {_shape(own[key])}'
            for key in shared
            if _shape(state_dict[key]) != _shape(own[key])
        },
    }
    problems = []
    for what, keys in found.items():
        for key in [key for key in keys if key.startswith(tuple(may_differ))]:
            del keys[key]
            state_dict.pop(key, None)
        if keys:
            names = [f'{printable(key, 100)}{shapes}' for key, shapes in keys.items()]
            names[NAMES_IN_AN_ERROR:] = ['...'] * (len(names) > NAMES_IN_AN_ERROR)
            problems.append(f'  {len(keys)} {what}: {", ".join(names)}')
    if not problems:
        return state_dict
    # A checkpoint of a teacher and a student fits without the prefix of one of them.
    first = next(iter(own), '')
    for prefix in (key.removesuffix(first) for key in state_dict if key.endswith(f'.{first}')):
        if all(prefix + name in state_dict for name in needed):
            remedy = (
                f'all fit without the prefix {prefix!r}, which this command removes: '
                f'`python -m mmrednet convert {source} OUT.pth --prefix {prefix}`'
            )
            break
    head = f'the checkpoint {source} does not fit {type(model).__name__}, so nothing of it was loaded:'
    raise ValueError('\n'.join([head, *problems, remedy]))


def _shape(value: object) -> tuple | str:
    """Returns a tensor's shape. The extra state of a module can be any object."""
    return tuple(value.shape) if isinstance(value, Tensor) else 'no tensor'
