"""Models in the file formats of other runtimes, compared with PyTorch."""

from .compare import compare, export_checked
from .formats import FORMATS, check_format, export
from .model import DTYPES, ExportableModel

__all__ = ['DTYPES', 'FORMATS', 'ExportableModel', 'check_format', 'compare', 'export', 'export_checked']
