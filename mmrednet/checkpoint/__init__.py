"""Checkpoints: where they come from, in which format and layout, and whether they fit a model."""

from .files import IMAGENET, READ_HERE, load, missing, read, save
from .layout import check, convert, widen

__all__ = ['IMAGENET', 'READ_HERE', 'check', 'convert', 'load', 'missing', 'read', 'save', 'widen']
