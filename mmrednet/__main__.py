"""The command line: ``python -m mmrednet COMMAND``."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from . import __version__
from .commands import COMMANDS
from .errors import one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that ``argv`` (default: the process's arguments) names and returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog='mmrednet', description='Involution (CVPR 2021) for OpenMMLab.')
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    subparsers = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=f'{summary[0].upper()}{summary[1:]}.')
        if name in argv[:1]:  # the others' modules, and the toolboxes under them, are not imported
            command = import_module(f'.commands.{name.replace("-", "_")}', __package__)
            command.add_arguments(subparser)
            subparser.add_argument('--traceback', action='store_true', help='on an error, print the whole traceback')
    args = parser.parse_args(argv)
    with suppress(AttributeError):  # of a stream that a caller put there
        # A file's name can hold what the terminal's encoding lacks.
        sys.stdout.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]
    try:
        return command.run(args) or 0
    except BrokenPipeError:  # `| head` has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        if args.traceback:
            raise
        print(f'mmrednet {args.command}: error: {one_line(error)}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
