"""Converts a checkpoint of mmcls 0.x, mmdet 2.x or mmseg 0.x to mmengine's layout.

The configs here take such checkpoints as they are, so this is for other programs. The parameters of the released
checkpoints keep their names and shapes; DataParallel's prefix goes, and the classes and the palette move to where
mmengine has them. With --config, a checkpoint that does not fit the config's model is refused.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import mmrednet.registry  # noqa: F401, what a checkpoint may hold
from mmrednet.checkpoint import check, convert


def parse_args() -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', metavar='IN', help='the checkpoint, which stays as it is')
    parser.add_argument('out', metavar='OUT', type=Path, help='the file to write; one that exists is replaced')
    parser.add_argument('--config', help='a config whose model the checkpoint has to fit')
    args = parser.parse_args()
    for path in filter(None, (args.checkpoint, args.config)):
        if not os.path.isfile(path):
            parser.error(f'{path} is no file')
    return args


def save(checkpoint: dict, path: Path) -> None:
    """Writes a checkpoint so that ``path`` is never half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        torch.save(checkpoint, part)
        part.replace(path)


def main() -> None:
    """Converts, checks and writes."""
    args = parse_args()
    try:
        checkpoint, renamed = convert(torch.load(args.checkpoint, map_location='cpu', weights_only=True))
        if args.config:
            config = Config.fromfile(args.config)
            init_default_scope(config.get('default_scope', 'mmengine'))
            check(MODELS.build(config.model), checkpoint['state_dict'], args.checkpoint, 'give the config of its model')
    except ValueError as error:
        sys.exit(f'{error}\nNothing was written.')
    for old, new in renamed.items():
        print(f'{old} -> {new}')
    save(checkpoint, args.out)
    print(f'{args.out}: {len(checkpoint["state_dict"])} parameters and buffers, {len(renamed)} entries renamed')


if __name__ == '__main__':
    main()
