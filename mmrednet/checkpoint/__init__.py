"""Checkpoints: downloads, file formats, layouts, and the check that a checkpoint fits a model."""

from .files import IMAGENET, READ_HERE, load, missing, read, save
from .layout import check, convert, widen

__all__ = ['IMAGENET', 'READ_HERE', 'check', 'convert', 'load', 'missing', 'read', 'save', 'widen']
