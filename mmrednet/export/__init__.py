"""Models in the file formats of other runtimes, compared with PyTorch."""

from .compare import TOLERANCE, Comparison, check, compare, export_checked
from .formats import FORMATS, check_format, export
from .model import DTYPES, ExportableModel, example, trace_size

__all__ = [
    'DTYPES',
    'FORMATS',
    'TOLERANCE',
    'Comparison',
    'ExportableModel',
    'check',
    'check_format',
    'compare',
    'example',
    'export',
    'export_checked',
    'trace_size',
]
