"""The scope ``mmrednet``: where ``type='mmrednet.RedNet'`` resolves from a config of any OpenMMLab toolbox."""

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmrednet', locations=['mmrednet.models'])
RUNNERS = Registry('runner', parent=MMENGINE_RUNNERS, scope='mmrednet', locations=['mmrednet.engine'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmrednet', locations=['mmrednet.engine'])

# What `type='RedNet'` can name, without the scope. The modules are imported when one of them is first built.
BARE_NAMES = (
    'RedNet',
    'Involution',
    'BottleneckKernelGeneration',
    'LinearKernelGeneration',
    'InvolutionFPN',
)


def _register_bare_name(name: str) -> None:
    def build(*args, **kwargs):
        return MODELS.get(name)(*args, **kwargs)

    build.__name__ = name
    MMENGINE_MODELS.register_module(name=name, module=build)


for _name in BARE_NAMES:
    _register_bare_name(_name)

# mmengine's checkpoints hold the message hub's log buffers, which torch >= 2.6 loads, safely, only when their types are
# named: without this, `mim test` and `--resume` fail with "Weights only load failed".
torch.serialization.add_safe_globals(
    [HistoryBuffer, np.ndarray, np.dtype, np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
)
