"""The paths of our configs, for commands that take one: ``mim train mmdet $(python -m mmrednet config NAME)``."""

import argparse

from .. import configs
from . import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument('name', nargs='?', help='such as mmdet/faster_rcnn_rednet50_invfpn (default: list all)')


def run(args: argparse.Namespace) -> None:
    """Prints a path, or the names of all configs."""
    if args.name is None:
        print(*configs.names(), sep='\n')
        return
    try:
        print(configs.find(args.name))
    except ValueError as error:
        raise CommandError(error) from error
