"""The command line: ``python -m mmrednet COMMAND``."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from . import __version__
from .commands import COMMANDS
from .commands.common import add_traceback
from .errors import one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 2 after an error.

    Args:
        argv (Sequence[str], optional): The name of the command and its arguments. Defaults to None, the arguments of
            this process.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog='mmrednet', description='Involution (CVPR 2021) for OpenMMLab.')
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    subparsers = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=f'{summary[0].upper()}{summary[1:]}.')
        if name in argv[:1]:  # the modules of the other commands would import their toolboxes
            command = import_module(f'.commands.{name.replace("-", "_")}', __package__)
            command.add_arguments(subparser)
            add_traceback(subparser)
    args = parser.parse_args(argv)
    args.command_line = shlex.join(['python', '-m', 'mmrednet', *argv])  # for reports
    with suppress(AttributeError):  # a caller's own stream may have no `reconfigure`
        # File names may hold characters that the terminal's encoding does not have.
        sys.stdout.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]
    try:
        return command.run(args) or 0
    except BrokenPipeError:  # a reader such as `head` has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        if 'traceback' in args:
            raise
        print(f'mmrednet {args.command}: error: {one_line(error)}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
