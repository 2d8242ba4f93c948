"""Prints the path of a config, for commands that need one: ``mim train mmdet $(python -m mmrednet config NAME)``."""

import argparse

from .. import configs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument('name', nargs='?', help='such as mmdet/faster_rcnn_rednet50_invfpn (default: list all names)')


def run(args: argparse.Namespace) -> None:
    """Prints a path, or the names of all configs."""
    print('\n'.join(configs.names()) if args.name is None else configs.find(args.name))
