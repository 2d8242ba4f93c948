"""Involution (CVPR 2021) for OpenMMLab. ``mmrednet.ops`` and ``mmrednet.layers`` need torch alone."""

__version__ = '0.1.0'
