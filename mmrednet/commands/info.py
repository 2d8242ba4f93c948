"""Prints what works on this machine, what does not, and why: a report for an issue. It needs torch alone."""

import argparse
import json
from importlib import import_module

from ..diagnosis import Finding, backend_probes, diagnose, machine_probes
from ..workers import Item
from . import COMMANDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument('--json', action='store_true', help='print JSON instead of a Markdown table')


def run(args: argparse.Namespace) -> None:
    """Prints the report."""
    findings = diagnose(machine_probes, command_probes, backend_probes)
    if args.json:
        print(json.dumps({name: finding._asdict() for name, finding in findings.items()}, indent=1))
        return
    rows = [('what', 'here', 'problem'), ('---', '---', '---'), *((name, *found) for name, found in findings.items())]
    for row in rows:
        # Not `markdown_table`: an error message as long as a page would pad every row to its width.
        print('|', ' | '.join(' '.join(cell.split()).replace('|', r'\|') for cell in row), '|')


def command_probes() -> list[Item]:
    """Returns a probe of the modules of all commands."""
    return [('commands', _commands)]


def _commands() -> Finding:
    broken = []
    for name in COMMANDS:
        try:
            import_module(f'{__package__}.{name.replace("-", "_")}')
        except Exception as error:
            broken.append(f'{name}: {type(error).__name__}: {error}')
    return Finding(', '.join(COMMANDS), '; '.join(broken))
