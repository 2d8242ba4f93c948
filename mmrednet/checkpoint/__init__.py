"""Checkpoints: downloads, file formats, layouts, and the check that a checkpoint fits a model."""

from .files import IMAGENET, OUR_READER, is_missing_file, load, read, save
from .layout import check, convert, widen

__all__ = ['IMAGENET', 'OUR_READER', 'check', 'convert', 'is_missing_file', 'load', 'read', 'save', 'widen']
