"""Involution (CVPR 2021) for OpenMMLab. ``mmrednet.ops`` needs torch alone; the models need mmengine and mmcv."""

from importlib.util import find_spec

__version__ = '0.1.0'

# `custom_imports=dict(imports=['mmrednet'])` makes the bare names known to mmengine, where there is one.
if find_spec('mmengine') is not None:
    from . import registry  # noqa: F401
