"""Modules built on the involution operator."""

from .involution import Involution, build_conv_layer
from .kernel_generation import BottleneckKernelGeneration, LinearKernelGeneration

__all__ = ['BottleneckKernelGeneration', 'Involution', 'LinearKernelGeneration', 'build_conv_layer']
