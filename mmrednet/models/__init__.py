"""The models: RedNet for every toolbox, and what extends a toolbox where that toolbox is installed."""

from importlib.util import find_spec

from ..requirements import require

require('mmengine', '0.10')
require('mmcv', '2.1')

from . import fpn, rednet  # noqa: E402, F401

if find_spec('mmdet') is not None:
    require('mmdet', '3.3')
    from . import detection  # noqa: F401
