"""The scope ``mmrednet``: where ``type='mmrednet.RedNet'`` resolves from a config of any OpenMMLab toolbox."""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmrednet', locations=['mmrednet.models'])
