"""A model of a config in the file format of another runtime, held against PyTorch."""

import argparse
import os
import tempfile
from math import isfinite
from pathlib import Path
from typing import Any

from ..errors import one_line
from ..requirements import require
from ..toolboxes import build_model, quiet, read_config
from . import CommandError
from .common import to_count, to_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    from ..export import DTYPES, FORMATS

    add = parser.add_argument
    add('config', metavar='CONFIG', help='config of a classifier, detector or segmentor, or its name')
    add('checkpoint', nargs='?', metavar='CHECKPOINT', help='its weights, a file or address (default: random ones)')
    add('--format', choices=FORMATS, required=True, help='what the file is')
    add('--out', type=to_path, metavar='F', required=True, help='the file, with the ending of its format')
    add(
        '--size',
        type=to_count,
        nargs=2,
        default=(224, 224),
        metavar=('H', 'W'),
        help='around which size the export is checked; the file takes any (default: 224 224)',
    )
    add('--dtype', choices=DTYPES, default='float32', help='of weights, images and outputs (default: float32)')


def run(args: argparse.Namespace) -> None:
    """Exports, checks, and prints the differences and both run times."""
    try:
        require('mmengine')
        _export(args)
    except CommandError:
        raise
    except Exception as error:  # a config can name anything
        raise CommandError(one_line(error)) from error


def _export(args: argparse.Namespace) -> None:
    from mmengine.model import revert_sync_batchnorm

    from .. import export

    size: tuple[int, int] = tuple(args.size)
    dtype = export.DTYPES[args.dtype]
    export.check_format(args.format, args.out)
    if not args.out.parent.is_dir():
        raise CommandError(f'--out: there is no folder {args.out.parent}: make it, or name another')
    with quiet():
        model = build_model(read_config(args.config), args.config, args.checkpoint)
        network = export.Dense(revert_sync_batchnorm(model)).to(dtype)
    # Beside the file, so that it appears there whole and checked, or not at all.
    with tempfile.TemporaryDirectory(dir=args.out.parent) as folder:
        path = Path(folder, args.out.name)
        with quiet():
            _write(network, args, path, size)
            runs = export.FORMATS[args.format].load(path)
        print(f'{"images":>16}  {"difference":>10}  {"PyTorch":>10}  {args.format:>12}')
        try:
            _compare(network, runs, size, export.TOLERANCE[dtype])
        except CommandError:
            raise
        except Exception as error:  # of any runtime
            raise CommandError(
                f'the export does not run at every size ({one_line(error)}); nothing was written'
            ) from error
        for file in Path(folder).iterdir():
            os.replace(file, args.out.parent / file.name)
    print(args.out)


def _compare(network: Any, run: Any, size: tuple[int, int], tolerance: float) -> None:
    from ..export import compare

    for found in compare(network, run, size):
        shape = 'x'.join(map(str, (found.size[0], 3, *found.size[1:])))
        print(
            f'{shape:>16}  {found.difference:10.1e}  {found.pytorch * 1e3:7.1f} ms  {found.exported * 1e3:9.1f} ms',
            flush=True,
        )
        # Where all values of an output are nearly the same, rounding is much of their range, in PyTorch too.
        allowed = max(tolerance, 4 * found.own if isfinite(found.own) else 0)
        if not found.difference <= allowed:
            raise CommandError(
                f'the export is wrong at {shape}: it differs from PyTorch in float64 by {found.difference:.1e} of the '
                f'range of an output, more than {allowed:g}; nothing was written'
            )


def _write(network: Any, args: argparse.Namespace, path: Path, size: tuple[int, int]) -> None:
    from ..export import export

    try:
        export(network, args.format, path, size)
    except Exception as error:  # the exporters raise whatever they meet
        raise CommandError(f'{args.config} cannot be exported as {args.format}: {one_line(error)}') from error
