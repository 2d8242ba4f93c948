"""The involution operator. It needs torch alone; the CUDA kernels also take CuPy, the native CPU kernels a C++ compiler."""

from .involution2d import BACKENDS, involution2d

__all__ = ['BACKENDS', 'involution2d']
