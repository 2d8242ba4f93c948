"""Predicts for photographs: prints a table and, with ``--out``, draws pictures."""

import argparse
import json
import sys

from ..errors import printable
from ..files import replacing
from ..requirements import require
from .common import to_count, to_path


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
        help='file or URL of the weights: .pth (from mmengine, it also contains the config), .pdparams or .safetensors',
    )
    add('--out', type=to_path, metavar='FOLDER', help='draws pictures into this folder')
    add('--json', type=to_path, metavar='FILE', help='writes the results to this file, unrounded')
    add('--device', metavar='D', help='cpu, cuda, cuda:1, ... (default: a GPU if there is one)')
    add(
        '--score-threshold',
        type=_fraction,
        metavar='T',
        help='lowest score to show (default: 0.3 in detection, else 0)',
    )
    add(
        '--top',
        type=to_count,
        metavar='K',
        help='largest number of results for each photograph (default: 5 in classification, else all)',
    )


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'must be from 0 to 1, but is {text}')
    return value


def run(args: argparse.Namespace) -> int:
    """Predicts. Returns 2 if a photograph could not be predicted, which does not stop the others."""
    require('mmengine')
    from ..inference.photos import find_photos

    photos = find_photos(args.photos)
    for problem in photos.problems:
        _report(f'error: {problem}')
    if photos.drawn:
        count = len(photos.drawn)
        _report(f'skipped {count} picture{"s" * (count > 1)} of earlier predictions, such as {photos.drawn[0]}')
    results = _predict(args, photos.files) if photos.files else []
    if args.json:
        with replacing(args.json) as part:
            part.write_text(json.dumps(results, indent=1) + '\n')
    return 2 if photos.problems or len(results) < len(photos.files) else 0


def _report(text: str) -> None:
    print(f'mmrednet predict: {printable(text, 4000)}', file=sys.stderr)


def _predict(args: argparse.Namespace, files: list[str]) -> list[dict]:
    """Prints a table of predictions as they come, and returns those that could be made."""
    from ..inference.predictor import Predictor, write_pictures

    limits = dict(score_threshold=args.score_threshold, top=args.top)
    predictor = Predictor(args.model, args.checkpoint, args.device, **limits, draw=args.out is not None)
    for note in predictor.notes:
        _report(note)
    task, results = predictor.task.name, []
    width = max(len(printable(file)) for file in files)
    box = f'{"x1 y1 x2 y2":19}  ' if task == 'detection' else ''
    print(f'{"file":{width}}  {"share" if task == "segmentation" else "score"}  {box}what')
    for prediction in write_pictures(predictor(files), args.out):
        if prediction.error:
            _report(f'error: {prediction.error}')
            continue
        results.append(dict(file=prediction.file, task=task, results=prediction.rows))
        for line in map(_format, prediction.rows) if prediction.rows else ['nothing']:
            print(f'{printable(prediction.file):{width}}  {line}', flush=True)
    return results


def _format(row: dict) -> str:
    number = f'{row["share"]:5.1%}' if 'share' in row else f'{row["score"]:.3f}'
    box = f'{" ".join(f"{side:.0f}" for side in row["box"]):19}  ' if 'box' in row else ''
    return f'{number}  {box}{printable(row["what"])}'
