"""Involution (CVPR 2021) for OpenMMLab. ``mmrednet.ops`` needs torch alone; the models need mmengine and mmcv."""

from importlib.util import find_spec

__version__ = '0.1.0'

# `custom_imports=dict(imports=['mmrednet'])` is to make the bare names known; without mmengine there is nobody to know them.
if find_spec('mmengine') is not None:
    from . import registry  # noqa: F401
