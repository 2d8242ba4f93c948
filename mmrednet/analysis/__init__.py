"""Parameters and FLOPs, beside those of the paper: plain functions that return data, and their picture."""

from .flops import count_flops
from .plot import plot_complexity
from .tables import ROWS, Complexity, Row, build_model, measure

__all__ = ['ROWS', 'Complexity', 'Row', 'build_model', 'count_flops', 'measure', 'plot_complexity']
