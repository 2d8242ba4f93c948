"""The involution operator.

It needs torch. The CUDA kernels also need CuPy, and the native CPU kernels also need a C++ compiler.
"""

from . import flops, onnx  # noqa: F401
from .backends import BACKENDS
from .dimensions import involution1d, involution3d
from .fused import fused_involution2d
from .involution import involution2d
from .window_product import window_product2d

__all__ = ['BACKENDS', 'fused_involution2d', 'involution1d', 'involution2d', 'involution3d', 'window_product2d']
