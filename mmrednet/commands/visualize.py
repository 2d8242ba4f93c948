"""Draws the kernels that an involution generates for images, as the paper's Figure 3 does."""

import argparse
import sys

from ..files import replacing
from .common import to_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add = parser.add_argument
    add('images', nargs='+', metavar='IMAGE', help='a file, a folder or a pattern; all images are drawn in one picture')
    add(
        '--config',
        required=True,
        metavar='C',
        help='the path or name of the config of a classifier, detector or segmentor',
    )
    add('--checkpoint', metavar='F', help='the weights, a file or URL (default: random weights)')
    add('--layer', metavar='NAME', help="the name of an involution (default: that of the paper's Figure 3)")
    add('--groups', nargs='+', type=int, metavar='G', help='the groups to draw, from 0 (default: all)')
    add(
        '--at',
        nargs='+',
        type=_point,
        default=[],
        metavar='X,Y',
        help='also draws the kernels at these places, in pixels as on the axes of the picture',
    )
    add('--out', type=to_path, required=True, metavar='FOLDER', help='the folder for the pictures')


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'must be X,Y in pixels, but is {text!r}') from None
    return x, y


def run(args: argparse.Namespace) -> None:
    """Draws. Nothing is written if an image or a place is wrong."""
    from ..inference.photos import find_photos
    from ..toolboxes import quiet
    from ..visualization.fonts import find_font, using_font
    from ..visualization.pictures import draw_photos

    photos = find_photos(args.images)
    if photos.problems:
        raise ValueError(photos.problems[0])
    files = photos.files + photos.drawn
    font, note = find_font(''.join(files))
    with quiet(), using_font(font):
        figures = draw_photos(files, args.config, args.checkpoint, args.layer, args.groups, args.at)
        for line in (note, '' if args.checkpoint else 'without --checkpoint the weights are random'):
            if line:
                print(f'mmrednet visualize: {line}', file=sys.stderr)
        for name, figure in figures.items():
            with replacing(args.out / name) as part:
                figure.savefig(part, format='png')
    for name in figures:
        print(args.out / name)
