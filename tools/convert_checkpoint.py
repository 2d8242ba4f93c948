"""Converts a checkpoint of mmcls 0.x, mmdet 2.x, mmseg 0.x or PaddleClas to mmengine's layout.

The configs here take such checkpoints as they are, so this is for other programs. The parameters of the released
checkpoints keep their names and shapes; DataParallel's prefix goes, the classes and the palette move to where mmengine
has them, and Paddle's names (.pdparams) become those of a classifier. With --config, a checkpoint that does not fit the
config's model is refused. An OUT that ends in .safetensors is written in that format.
"""

import argparse
import sys
from pathlib import Path

from mmrednet.checkpoint import check, convert, missing, read, save
from mmrednet.commands import CommandError
from mmrednet.commands.common import build_model, read_config


def parse_args() -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'checkpoint',
        metavar='IN',
        help='the checkpoint, a file (which stays as it is) or its address; #sha256=... at its end is checked',
    )
    parser.add_argument('out', metavar='OUT', type=Path, help='the file to write; one that exists is replaced')
    parser.add_argument('--config', help='a config whose model the checkpoint has to fit, its path or name')
    args = parser.parse_args()
    if missing(args.checkpoint):
        parser.error(f'{args.checkpoint} is no file')
    return args


def main() -> None:
    """Converts, checks and writes."""
    args = parse_args()
    try:
        checkpoint, renamed = convert(read(args.checkpoint))
        if args.config:
            model = build_model(read_config(args.config), args.config, None)
            check(model, checkpoint['state_dict'], args.checkpoint, 'give the config of its model')
        left_out = save(checkpoint, args.out)
    except (CommandError, ImportError, OSError, ValueError) as error:
        sys.exit(f'{error}\nNothing was written.')
    for old, new in renamed.items():
        print(f'{old} -> {new}')
    if left_out:
        print(f'left out, since {args.out.suffix} holds parameters and meta only: {", ".join(left_out)}')
    print(f'{args.out}: {len(checkpoint["state_dict"])} parameters and buffers, {len(renamed)} entries renamed')


if __name__ == '__main__':
    main()
