"""Modules built on the involution operator."""

from ..requirements import require

require('mmengine', '0.10')
require('mmcv', '2.1')

from .involution import Involution, build_conv_layer  # noqa: E402
from .kernel_generation import BottleneckKernelGeneration, LinearKernelGeneration  # noqa: E402

__all__ = ['BottleneckKernelGeneration', 'Involution', 'LinearKernelGeneration', 'build_conv_layer']
