"""All changes to other packages, for the whole process. The docstring of each function states when it can go.

``mmrednet.registry`` imports this module. So every config that names a type as ``mmrednet.`` imports it.
"""

import os
from getpass import getuser
from importlib.util import find_spec
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.analysis.complexity_analysis import _DEFAULT_SUPPORTED_ACT_OPS, _DEFAULT_SUPPORTED_FLOP_OPS
from mmengine.analysis.jit_handles import generic_activation_jit, get_shape
from mmengine.config import ConfigDict
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import checkpoint as _checkpoint

from .ops.flops import fused_multiply_adds, multiply_adds


def count_involutions() -> None:
    """Adds the operators to mmengine's private tables for counting FLOPs and activations.

    ``mim run <toolbox> get_flops`` has no other place for them. This can go when mmengine has a public table.
    """
    for name, count in (
        ('involution2d', _count_involution),
        ('fused_involution2d', _count_fused_involution),
        ('window_product2d', _count_window_product),
    ):
        _DEFAULT_SUPPORTED_FLOP_OPS[f'mmrednet::{name}'] = count
        _DEFAULT_SUPPORTED_ACT_OPS[f'mmrednet::{name}'] = generic_activation_jit()


def _count_involution(inputs, outputs) -> int:
    """Counts the multiply-adds of a traced involution, as mmengine counts those of a convolution."""
    return multiply_adds(get_shape(outputs[0]), get_shape(inputs[1])[2:4])


def _count_fused_involution(inputs, outputs) -> int:
    kernel_size = [value.toIValue() for value in inputs[4].node().inputs()]
    return fused_multiply_adds(get_shape(outputs[0]), get_shape(inputs[2]), kernel_size)


def _count_window_product(inputs, outputs) -> int:
    return multiply_adds(get_shape(inputs[0]), get_shape(outputs[0])[2:4])


def declare_safe_types() -> None:
    """Declares the types in mmengine's checkpoints as safe for torch's ``weights_only`` loading, and no others.

    Checkpoints hold the message hub's log buffers and values, the data set's description and the schedulers' state.
    Without this, torch >= 2.6 stops ``mim test`` and ``--resume`` with "Weights only load failed". This can go
    when mmengine itself declares these types, as safely.
    """
    safe: list[Any] = [
        HistoryBuffer,
        OneCycleParamScheduler,
        (_method, 'builtins.getattr'),
        ConfigDict,
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in '?bhilqBHILQefdSU'},
    ]
    # NumPy's two functions that rebuild arrays and scalars. Their module is private, so they are taken from values.
    # NumPy 2 renamed the module, and a checkpoint has the name of the version that saved it.
    for function in (np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]):
        for core in ('core', '_core'):
            safe.append((function, f'numpy.{core}.multiarray.{function.__name__}'))  # type: ignore[union-attr]
    torch.serialization.add_safe_globals(safe)


def _method(owner: type, name: str):
    """Replaces ``getattr`` in checkpoints, and returns only the methods that log buffers and schedulers store."""
    if owner is HistoryBuffer and not name.startswith('_'):
        return getattr(owner, name)
    if owner is OneCycleParamScheduler and name.startswith('_annealing_'):
        return getattr(owner, name)
    raise UnpicklingError(f'a checkpoint may name methods of HistoryBuffer, but names {name!r} of {owner!r}')


def keep_safe_types_in_onedl() -> None:
    """Keeps OneDL's mmengine from removing safe types after each checkpoint, and from declaring ``getattr`` safe.

    OneDL's mmengine declares a list of types for each checkpoint. Afterwards it removes them, even if we declared them
    before. The list contains ``getattr``, which gives access to any code. This can go when OneDL does neither.
    """
    if not hasattr(_checkpoint, 'get_torch_safe_globals'):
        return
    types_of_onedl = _checkpoint.get_torch_safe_globals
    _checkpoint.get_torch_safe_globals = lambda: [
        name for name in types_of_onedl() if name is not getattr and name not in torch.serialization.get_safe_globals()
    ]


def find_configs_by_package() -> None:
    """Adds ``mmrednet::...`` to the names of configs that mmengine finds, and ``mmseg::...`` with OneDL's packages.

    mmengine has a fixed table from the name before ``::`` to a distribution. If no distribution has that name, mmengine
    uses the folder of the module. The distribution of mmrednet does not lead to the package if it is installed in
    place, and OneDL's mmseg is in another distribution than the table has. This can go when mmengine uses the package's
    own folder.
    """
    MODULE2PACKAGE['mmrednet'] = 'mmrednet.registry'
    if find_spec('mmseg') is not None:
        MODULE2PACKAGE['mmseg'] = 'mmseg'


def name_the_user() -> None:
    """Sets ``USER`` if the user has no name, as in a container that was started with any number as its user.

    torch puts the name into the path of a cache folder, and importing torchvision would fail: "getpwuid(): uid not
    found". This can go when torch 2.13 is the oldest supported version.
    """
    try:
        getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        os.environ['USER'] = f'uid{os.getuid()}'


count_involutions()
declare_safe_types()
keep_safe_types_in_onedl()
find_configs_by_package()
name_the_user()
