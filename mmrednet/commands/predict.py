"""Predicts for photographs: prints a table and, with ``--out``, draws pictures."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..files import replacing
from ..requirements import require
from .common import to_count, to_path

if TYPE_CHECKING:
    from ..inference.predictor import Prediction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add = parser.add_argument
    add('photos', nargs='+', metavar='PHOTO', help="a file, a folder or a pattern such as 'trip/**/*.jpg'")
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        '--model',
        metavar='NAME',
        help='a model of mmrednet; public weights are downloaded once (default: rednet50_in1k)',
    )
    model.add_argument('--config', dest='model', metavar='C', help='the path or the name of a config')
    add(
        '--checkpoint',
        metavar='F',
        help='the weights, a file or URL: .pth (one that mmengine saved holds its config), .pdparams, .safetensors',
    )
    add('--out', type=to_path, metavar='FOLDER', help='draws pictures into this folder')
    add('--json', type=to_path, metavar='FILE', help='writes the results to this file, unrounded')
    add('--device', metavar='D', help='cpu, cuda, cuda:1, ... (default: the best that there is)')
    add('--score-threshold', type=_fraction, metavar='T', help='least score (default: 0.3 in detection, else 0)')
    add(
        '--top',
        type=to_count,
        metavar='K',
        help='most results of a photograph (default: 5 in classification, else all)',
    )
    add(
        '--batch-size',
        type=to_count,
        default=1,
        metavar='N',
        help='photographs of one size that go through the model together (default: 1)',
    )


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'must be from 0 to 1, but is {text}')
    return value


def run(args: argparse.Namespace) -> int:
    """Predicts. Returns 2 if a photograph could not be predicted, which does not stop the others."""
    require('mmengine')
    from ..inference.names import printable
    from ..inference.photos import find_photos

    def report(text: str) -> None:
        print(f'mmrednet predict: {printable(text)}', file=sys.stderr)

    photos = find_photos(args.photos)
    errors, results = [*photos.problems], []
    for error in errors:
        report(f'error: {error}')
    if photos.drawn:
        count = len(photos.drawn)
        report(f'left out {count} picture{"s" * (count > 1)} that it drew before, such as {photos.drawn[0]}')
    for prediction in _predict(args, photos.files, report) if photos.files else ():
        if prediction.error:
            errors.append(prediction.error)
            report(f'error: {prediction.error}')
        else:
            results.append(dict(file=prediction.file, task=prediction.task, results=prediction.rows))
    if args.json:
        with replacing(args.json) as part:
            part.write_text(json.dumps(results, indent=1) + '\n')
    return 2 if errors else 0


def _predict(args: argparse.Namespace, files: list[str], report: Callable[[str], None]) -> Iterator['Prediction']:
    """Prints a table of predictions as they come."""
    from ..inference.names import printable
    from ..inference.predictor import Predictor, write_pictures

    limits = dict(score_threshold=args.score_threshold, top=args.top)
    predictor = Predictor(args.model, args.checkpoint, args.device, **limits, draw=args.out is not None)
    for note in predictor.notes:
        report(note)
    predictions = predictor(files, args.batch_size)
    if args.out:
        predictions = write_pictures(predictions, args.out)
    width = max(len(printable(file)) for file in files)
    print(f'{"file":{width}}  {predictor.task.header}')
    for prediction in predictions:
        if not prediction.error:
            for line in [predictor.task.format(row) for row in prediction.rows] or ['nothing']:
                print(f'{printable(prediction.file):{width}}  {line}', flush=True)
        yield prediction
