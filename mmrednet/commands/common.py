"""Types of arguments that several commands take."""

import argparse
from pathlib import Path


def to_count(text: str) -> int:
    """Reads a number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, but is {text}')
    return value


def to_path(text: str) -> Path:
    """Reads a path; shells leave ``--out=~/pictures`` as it is."""
    return Path(text).expanduser()
