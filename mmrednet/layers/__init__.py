"""Modules built on the operators, for any network. They need torch alone."""

from .attention import LocalAttention, LocalRelationKernelGeneration, SelfAttentionKernelGeneration
from .global_attention import AugmentedConv2d, AxialAttention
from .involution import Involution, in_place_of_conv
from .kernel_generation import BottleneckKernelGeneration, LinearKernelGeneration
from .neighbourhood import NeighbourhoodKernelGeneration
from .san import PairwiseKernelGeneration, PatchwiseKernelGeneration

__all__ = [
    'AugmentedConv2d',
    'AxialAttention',
    'BottleneckKernelGeneration',
    'Involution',
    'LinearKernelGeneration',
    'LocalAttention',
    'LocalRelationKernelGeneration',
    'NeighbourhoodKernelGeneration',
    'PairwiseKernelGeneration',
    'PatchwiseKernelGeneration',
    'SelfAttentionKernelGeneration',
    'in_place_of_conv',
]
