"""Rewrites a checkpoint of an older toolbox or of PaddleClas in the layout of mmengine.

The models of mmrednet load such checkpoints directly. The command is for other programs.
"""

import argparse

from ..requirements import require
from .common import to_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add('checkpoint', metavar='IN', help='the file or URL to read; #sha256=... at its end is checked')
    add(
        'out',
        metavar='OUT',
        type=to_path,
        help='the file to write, .pth or .safetensors; an existing file is replaced',
    )
    add('--config', help='refuse a checkpoint that does not fit the model of this config (a path or a name)')
    add('--prefix', default='', help="keep only the parameters with this prefix, such as 'student.', and remove it")


def run(args: argparse.Namespace) -> None:
    """Reads, converts, checks and writes."""
    require('mmengine')
    from ..checkpoint import check, convert, read, save
    from ..toolboxes import build_model, quiet, read_config

    checkpoint, renamed = convert(read(args.checkpoint), args.prefix)
    if args.config:
        with quiet():
            model = build_model(read_config(args.config), args.config, None)
        check(model, checkpoint['state_dict'], args.checkpoint, 'give the config of its model')
    left_out = save(checkpoint, args.out)
    for old, new in renamed.items():
        print(f'{old} -> {new}' if new else f'{old} is left out')
    if left_out:
        print(f'left out, since {args.out.suffix} files hold only parameters and meta: {", ".join(left_out)}')
    print(f'{args.out}: {len(checkpoint["state_dict"])} parameters and buffers, {len(renamed)} entries renamed')
