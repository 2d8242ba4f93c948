"""The involution operator. It needs torch; its CUDA kernels also CuPy, its native CPU kernels a C++ compiler."""

from . import flops  # noqa: F401
from .involution2d import BACKENDS, involution2d

__all__ = ['BACKENDS', 'involution2d']
