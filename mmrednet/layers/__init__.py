"""Modules built on the involution operator, for any network. They need torch alone."""

from .involution import Involution, in_place_of_conv
from .kernel_generation import BottleneckKernelGeneration, LinearKernelGeneration

__all__ = ['BottleneckKernelGeneration', 'Involution', 'LinearKernelGeneration', 'in_place_of_conv']
