"""The scope ``mmrednet``, in which any OpenMMLab config finds ``type='mmrednet.RedNet'``."""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import Registry

from . import patches  # noqa: F401

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmrednet', locations=['mmrednet.models'])
RUNNERS = Registry('runner', parent=MMENGINE_RUNNERS, scope='mmrednet', locations=['mmrednet.engine'])
STRATEGIES = Registry(
    'strategy', parent=MMENGINE_STRATEGIES, scope='mmrednet', locations=['mmrednet.engine.strategies']
)
HOOKS = Registry(
    'hook', parent=MMENGINE_HOOKS, scope='mmrednet', locations=['mmrednet.engine', 'mmrednet.engine.kernel_hook']
)


def register_model(name: str | None = None):
    """Registers a class or function for ``type='mmrednet.Name'``. After its import, ``type='Name'`` also finds it."""

    def register(module):
        for registry in (MODELS, MMENGINE_MODELS):
            registry.register_module(name=name, module=module)
        return module

    return register
