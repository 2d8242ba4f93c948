"""Models in the file formats of other runtimes, compared with PyTorch."""

from .model import DTYPES, FORMATS, TOLERANCE, Dense, check_format, compare, example, export, trace_size

__all__ = ['DTYPES', 'FORMATS', 'TOLERANCE', 'Dense', 'check_format', 'compare', 'example', 'export', 'trace_size']
