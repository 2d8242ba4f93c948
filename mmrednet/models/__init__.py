"""The models: RedNet for every toolbox, and what extends a toolbox where that toolbox is installed."""

from importlib.util import find_spec

# The layers come first: they check mmengine and mmcv.
from .. import layers  # noqa: F401
from ..requirements import require
from . import fpn, rednet  # noqa: F401

if find_spec('mmdet') is not None:
    require('mmdet', '3.3')
    from . import detection  # noqa: F401
