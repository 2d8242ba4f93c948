"""The models: RedNet for every toolbox, and what extends a toolbox where that toolbox is installed."""

import warnings
from importlib import import_module
from importlib.util import find_spec

from ..requirements import TOOLBOXES, require

require('mmengine')
require('mmcv')

from . import fpn, involution  # noqa: E402, F401
from .rednet import RedNet as RedNet  # noqa: E402

for _name, _toolbox in TOOLBOXES.items():
    if find_spec(_name) is None:
        continue
    try:
        require(_name)
        import_module(_toolbox.module)
    except Exception as _error:
        # Whatever is wrong with it, who uses another toolbox goes on.
        warnings.warn(f'what mmrednet adds to {_name} is not there: {_error}', stacklevel=2)
