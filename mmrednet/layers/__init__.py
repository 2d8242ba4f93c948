"""Modules built on the operators, for any network. They need torch alone."""

from .attention import LocalAttention, LocalRelationKernelGeneration, SelfAttentionKernelGeneration
from .involution import Involution, in_place_of_conv
from .kernel_generation import BottleneckKernelGeneration, LinearKernelGeneration
from .neighbourhood import NeighbourhoodKernelGeneration
from .san import PairwiseKernelGeneration, PatchwiseKernelGeneration

__all__ = [
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
