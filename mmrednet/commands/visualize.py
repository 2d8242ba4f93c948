"""What an involution learned: the paper's Figure 3 of one's own images, and the kernels at places in them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..errors import one_line
from ..files import replacing
from ..inference.photos import find_photos, read_photos
from ..toolboxes import build_model, find_dataset, quiet, read_config
from . import CommandError
from .common import to_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add = parser.add_argument
    add('images', nargs='+', metavar='IMAGE', help='a file, a folder or a pattern; all go into one picture')
    add('--config', required=True, metavar='C', help='config of a classifier, detector or segmentor, or its name')
    add('--checkpoint', metavar='F', help='its weights, a file or address (default: those that training starts from)')
    add('--layer', metavar='NAME', help="name of an involution (default: that of the paper's Figure 3)")
    add('--groups', nargs='+', type=int, metavar='G', help='which groups, from 0 (default: all)')
    add(
        '--at',
        nargs='+',
        type=_point,
        default=[],
        metavar='X,Y',
        help='draws the kernels at these places, in pixels of the image, too',
    )
    add('--out', type=to_path, required=True, metavar='FOLDER', help='where the pictures go')


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'must be X,Y in pixels of the image, but is {text!r}') from None
    return x, y


def run(args: argparse.Namespace) -> None:
    """Draws."""
    images = list(read_photos(find_photos(args.images, _refuse), _refuse))
    try:
        with quiet():
            pictures = _draw(args, images)
    except CommandError:
        raise
    except Exception as error:  # a config can name anything
        raise CommandError(one_line(error)) from error
    for path, figure in pictures:
        with replacing(path) as part:
            figure.savefig(part, format='png')
        print(path)


def _refuse(text: str) -> NoReturn:
    raise CommandError(text)


def _draw(args: argparse.Namespace, images: Sequence[tuple]) -> list[tuple[Path, 'Figure']]:
    from mmengine.device import get_device

    from ..visualization.kernels import Seen, draw_heat_maps, draw_kernels, find_involution, generate_kernel
    from ..visualization.view import find_view, ramps

    config = read_config(args.config)
    model, pipeline = build_model(config, args.config, args.checkpoint), _build_pipeline(config)
    if args.checkpoint is None:
        print('mmrednet visualize: no --checkpoint: the weights are those that training starts from', file=sys.stderr)
        model.init_weights()  # type: ignore[operator]
    model.to(get_device()).eval()
    layer = find_involution(model, args.layer)
    seen = []
    for path, image in images:
        packed, probe = (
            pipeline(dict(img=pixels, img_path=path, img_shape=pixels.shape[:2], ori_shape=pixels.shape[:2]))
            for pixels in (image, ramps(*image.shape[:2]))
        )
        batch = dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']])
        kernel, padded = generate_kernel(model, batch, layer)
        view = find_view(probe['inputs'].numpy().transpose(1, 2, 0), image.shape[:2], padded)
        seen.append(Seen(image[..., ::-1], view, kernel[0]))
    title = f'{layer}: sum of the {kernel.shape[2]}x{kernel.shape[3]} kernel at each place'
    pictures = [(args.out / f'{layer}_heat_maps.png', draw_heat_maps(seen, args.groups, title))]
    for number, ((path, _), one) in enumerate(zip(images, seen, strict=True), 1) if args.at else ():
        figure = draw_kernels(one, args.at, args.groups, f'{layer}: the kernels at places in {Path(path).name}')
        pictures.append((args.out / f'{layer}_kernels_{number}_{Path(path).stem}.png', figure))
    return pictures


def _build_pipeline(config):
    """Returns the config's test pipeline without what loads images and annotations."""
    from mmengine.dataset import Compose

    pipeline = find_dataset(config).pipeline
    names = [kind if isinstance(kind, str) else kind.__name__ for kind in (step['type'] for step in pipeline)]
    return Compose(
        [step for step, name in zip(pipeline, names, strict=True) if not name.rpartition('.')[2].startswith('Load')]
    )
