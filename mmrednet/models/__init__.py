"""The models: RedNet for every toolbox, and what extends a toolbox only where that toolbox is installed."""

from importlib.util import find_spec

from . import rednet  # noqa: F401

if find_spec('mmdet') is not None:
    from . import detection  # noqa: F401
