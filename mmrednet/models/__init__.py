"""The models: RedNet and its family for every toolbox, and necks and heads for the toolboxes that are installed."""

import warnings
from importlib import import_module
from importlib.util import find_spec

from ..requirements import TOOLBOXES, require

require('mmengine')
require('mmcv')

from . import fpn, involution  # noqa: E402, F401
from .aa_resnet import AAResNet as AAResNet  # noqa: E402
from .axial_resnet import AxialResNet as AxialResNet  # noqa: E402
from .lrnet import LRNet as LRNet  # noqa: E402
from .rednet import RedNet as RedNet  # noqa: E402
from .san import SAN as SAN  # noqa: E402
from .sasa import StandAloneResNet as StandAloneResNet  # noqa: E402

for _name, _toolbox in TOOLBOXES.items():
    if find_spec(_name) is None:
        continue
    try:
        require(_name)
        import_module(_toolbox.module)
    except Exception as _error:
        # One broken toolbox must not stop the users of another.
        warnings.warn(f'mmrednet cannot extend {_name}: {_error}', stacklevel=2)
