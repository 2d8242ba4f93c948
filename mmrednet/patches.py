"""What we change in other packages, process-wide, and why: all of it stands here. ``mmrednet.registry`` imports it.

mmengine counts FLOPs by a private table of operators, the only one that `mim run <toolbox> get_flops` reads: ours are
added. torch's safe loading knows no type of mmengine's checkpoints: those are named as safe, and no others. Whether a
runner resumes, RedNet has to know and nobody says. mmengine reads configs by name of a fixed list of packages, and its
inferencers of their toolbox alone: ours are added. OneDL's mmengine forgets what is safe, and looks for OneDL's mmseg
under OpenMMLab's name: both are mended.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from importlib.util import find_spec
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.analysis.complexity_analysis import _DEFAULT_SUPPORTED_ACT_OPS, _DEFAULT_SUPPORTED_FLOP_OPS
from mmengine.analysis.jit_handles import generic_activation_jit, get_shape
from mmengine.config import Config, ConfigDict
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.infer import BaseInferencer
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import FlexibleRunner, Runner
from mmengine.runner import checkpoint as _checkpoint

from . import configs
from .ops.flops import fused_multiply_adds, multiply_adds


def _count_involution(inputs, outputs) -> int:
    """Counts the multiply-adds of a traced involution, as mmengine counts those of a convolution."""
    return multiply_adds(get_shape(outputs[0]), get_shape(inputs[1])[2:4])


def _count_fused_involution(inputs, outputs) -> int:
    kernel_size = [value.toIValue() for value in inputs[4].node().inputs()]
    return fused_multiply_adds(get_shape(outputs[0]), get_shape(inputs[2]), kernel_size)


for _name, _count in (('involution2d', _count_involution), ('fused_involution2d', _count_fused_involution)):
    _DEFAULT_SUPPORTED_FLOP_OPS[f'mmrednet::{_name}'] = _count
    _DEFAULT_SUPPORTED_ACT_OPS[f'mmrednet::{_name}'] = generic_activation_jit()


def _method(owner: type, name: str):
    """Stands for ``getattr`` in checkpoints, where it names what log buffers and schedulers call, and nothing else."""
    if owner is HistoryBuffer and not name.startswith('_'):
        return getattr(owner, name)
    if owner is OneCycleParamScheduler and name.startswith('_annealing_'):
        return getattr(owner, name)
    raise UnpicklingError(f'a checkpoint may name methods of HistoryBuffer, but names {name!r} of {owner!r}')


# mmengine's checkpoints hold the message hub's log buffers and values, the data set's description and the schedulers'
# state, whose types torch >= 2.6 loads only when they are known as safe: without this, `mim test` and `--resume` fail
# with "Weights only load failed". Loading itself stays safe.
_SAFE: list[Any] = [
    HistoryBuffer,
    OneCycleParamScheduler,
    (_method, 'builtins.getattr'),
    ConfigDict,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in '?bhilqBHILQefdSU'},
    # NumPy's two functions that rebuild arrays and scalars; their module is private, so they are asked for. NumPy 2
    # renamed it, and checkpoints name the one of the version that saved them.
    *(
        (function, f'numpy.{core}.multiarray.{function.__name__}')  # type: ignore[union-attr]
        for function in (np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0])
        for core in ('core', '_core')
    ),
]
torch.serialization.add_safe_globals(_SAFE)

if hasattr(_checkpoint, 'get_torch_safe_globals'):  # OneDL's
    # It names types of its own for each checkpoint and takes them away after it, though they were known before. One is
    # getattr itself, which leads to any code.
    _names_for_one_checkpoint = _checkpoint.get_torch_safe_globals
    _checkpoint.get_torch_safe_globals = lambda: [
        name
        for name in _names_for_one_checkpoint()
        if name is not getattr and name not in torch.serialization.get_safe_globals()
    ]

# For `mmrednet::mmdet/...`. mmengine looks in the folder of a module whose name is no distribution's. Where mmrednet is
# installed in place, the distribution's name would not lead to the package.
MODULE2PACKAGE['mmrednet'] = 'mmrednet.registry'
# So for `mmseg::...`, too: mmengine looks for the distribution mmsegmentation, which is onedl-mmsegmentation in OneDL.
if find_spec('mmseg') is not None:
    MODULE2PACKAGE['mmseg'] = 'mmseg'

_load_model_from_metafile = BaseInferencer._load_model_from_metafile


def _load_named_model(inferencer, name: str) -> tuple[Config, str | None]:
    """Finds our detectors and segmentors, which have no public weights, before the toolbox's own models."""
    if (full := f'{inferencer.scope}/{name}') in configs.names():
        return Config.fromfile(configs.find(full)), None
    return _load_model_from_metafile(inferencer, name)


BaseInferencer._load_model_from_metafile = _load_named_model

# Set while a runner resumes a run.
RESUMES = ContextVar('RESUMES', default=False)


def _say_so(resume: Callable) -> Callable:
    @wraps(resume)
    def resume_and_say_so(*args, **kwargs):
        token = RESUMES.set(True)
        try:
            return resume(*args, **kwargs)
        finally:
            RESUMES.reset(token)

    return resume_and_say_so


for _runner in (Runner, FlexibleRunner):
    _runner.resume = _say_so(_runner.resume)
