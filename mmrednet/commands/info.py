"""Prints what works on this machine, what does not, and why: a report for an issue. It needs torch alone."""

import argparse
import json

from ..diagnosis import backend_probes, diagnose, machine_probes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument('--json', action='store_true', help='print JSON instead of a Markdown table')


def run(args: argparse.Namespace) -> None:
    """Prints the report."""
    findings = diagnose(machine_probes, backend_probes)
    if args.json:
        print(json.dumps({name: finding._asdict() for name, finding in findings.items()}, indent=1))
        return
    rows = [('what', 'found', 'problem'), ('---', '---', '---'), *((name, *found) for name, found in findings.items())]
    for row in rows:
        # Not `markdown_table`: an error message as long as a page would pad every row to its width.
        print('|', ' | '.join(' '.join(cell.split()).replace('|', r'\|') for cell in row), '|')
