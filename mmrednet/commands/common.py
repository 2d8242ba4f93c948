"""Arguments that several commands take."""

import argparse
from pathlib import Path


def add_traceback(parser: argparse.ArgumentParser) -> None:
    """Adds ``--traceback``, which :func:`mmrednet.__main__.main` reads."""
    help = 'after an error, print the whole traceback'
    # Without a default: a parser inside another one would overwrite the other's value with it.
    parser.add_argument('--traceback', action='store_true', default=argparse.SUPPRESS, help=help)


def to_count(text: str) -> int:
    """Reads a number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, but is {text}')
    return value


def to_path(text: str) -> Path:
    """Reads a path, and replaces a leading ``~``: shells leave ``--out=~/pictures`` as it is."""
    return Path(text).expanduser()
