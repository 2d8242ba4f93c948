"""Predictions for photographs with the inferencers of mmpretrain, mmdet and mmsegmentation."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose

from ..checkpoint import IMAGENET, load
from ..configs import find
from ..environment import find_device
from ..errors import one_line
from ..files import replacing
from ..toolboxes import enter_scope, find_dataset, load_weights, naming, quiet, read_config, split_pipeline
from ..visualization.fonts import find_font, using_font
from .names import find_names
from .photos import read_photo
from .tasks import TASKS

DEFAULT = 'rednet50_in1k'
REMEDY = 'give the config that it was trained with (--config or --model), or a checkpoint of this one'
# By a part of an error's text.
REMEDIES = {
    'out of memory': ': make it smaller',
    "function 'resize'": ': it is too narrow, so that the test pipeline makes it 0 pixels wide or high; pad it',
}


@dataclass
class Prediction:
    """A model's prediction for a photograph.

    A row is a dict with ``label`` and ``what``, the class's name. In classification and detection it has ``score``, in
    detection also ``box`` (x1, y1, x2, y2 in pixels). In segmentation it has ``share``, the share of the image.
    """

    file: str
    rows: list[dict] = field(default_factory=list)  # the best first
    picture: np.ndarray | None = None  # 8-bit RGB (H, W, 3), if it was drawn
    error: str = ''  # why nothing was predicted


class Predictor:
    """A model that predicts for photographs.

    Args:
        model (str, optional): The name or path of a config. Defaults to None: the config in the checkpoint or, without
            a checkpoint, RedNet-50 for ImageNet.
        checkpoint (str, optional): The weights, a path or URL. Defaults to None: the public weights of the model.
        device (str, optional): Such as ``'cuda:1'``. Defaults to None: a GPU if there is one.
        score_threshold (float, optional): The lowest score of a row. Defaults to None: 0.3 in detection, else 0.
        top (int, optional): The largest number of rows. Defaults to None: 5 in classification, else all.
        draw (bool): Whether to draw pictures. Defaults to False.

    Attributes:
        notes: Lines that the user should read.

    Raises:
        ValueError: An argument, the config or the checkpoint is wrong, or the checkpoint does not fit the model.
        OSError: A file cannot be read or downloaded.
        ImportError: The toolbox is not installed.
    """

    def __init__(
        self,
        model: str | None = None,
        checkpoint: str | None = None,
        device: str | None = None,
        score_threshold: float | None = None,
        top: int | None = None,
        draw: bool = False,
    ) -> None:
        device = str(find_device(device))
        model = model or (None if checkpoint else DEFAULT)
        source = checkpoint or _public_weights(model)
        with quiet():
            content = {} if model else load(source)
            config = read_config(model) if model else _config_in(content, source)
            scope = enter_scope(config, model or source)
            if scope == 'mmseg' and score_threshold is not None:
                raise ValueError('--score-threshold is for classification and detection: a segmentation has no scores')
            loading, following = split_pipeline(config)
            with naming(model or source):
                # The inferencers take the pipeline from here. They get loaded images, since mmpretrain's inferencer
                # would ignore the arguments of the loading step.
                dataset = config.test_dataloader.dataset = find_dataset(config)
                dataset.pipeline = [dict(type='LoadImageFromFile'), *following]
                self._load = Compose(loading)
                self.task = TASKS[scope](config, device, score_threshold, top)
            content = content or load(source)
            # The inferencers would load what fits and leave the rest of the model random.
            load_weights(self.task.inferencer.model, content['state_dict'], source, REMEDY)
            names = find_names(content['meta'], config, self.task.inferencer.model)
        self.task.set_names(names)
        self._draw = draw
        self._font, note = find_font(''.join(names.classes) if draw else '')
        self.notes = [line for line in (names.note, note) if line]

    def __call__(self, photos: Iterable[str]) -> Iterator[Prediction]:
        """Predicts for photographs, in their order. One that cannot be read or predicted does not stop the others."""
        return map(self._predict, photos)

    def _predict(self, photo: str) -> Prediction:
        try:
            with quiet():
                image = read_photo(photo, self._load)
        except ValueError as error:
            return Prediction(photo, error=one_line(error))
        try:
            with quiet(), using_font(self._font):
                sample = self.task.infer(image)
                rows = self.task.list_rows(sample)
                return Prediction(photo, rows, self.task.draw(image, sample, rows) if self._draw else None)
        except Exception as error:  # a model can raise anything
            shape = 'x'.join(map(str, (image.shape[1], image.shape[0], *image.shape[2:])))
            remedy = next((text for sign, text in REMEDIES.items() if sign in str(error)), '')
            return Prediction(photo, error=f'{photo} ({shape}) cannot be predicted ({one_line(error)}){remedy}')


def _public_weights(model: str | None) -> str:
    """Returns the public weights of one of our models. A user's config of the same name has none."""
    if model and '::' not in model and not os.path.isfile(os.path.expanduser(model)):
        stem = Path(find(model)).stem
        if stem in IMAGENET:
            return f'mmrednet://{stem}'
    raise ValueError(f'{model} has no public weights: give its checkpoint with --checkpoint')


def _config_in(checkpoint: dict, source: str) -> Config:
    text = checkpoint['meta'].get('cfg')
    if not text:
        raise ValueError(
            f'{source} holds no config: give its model with --config, or by name with --model '
            f'({DEFAULT} for a RedNet-50 of ImageNet)'
        )
    if '://' in source:
        raise ValueError(
            f'{source} holds a config, which can run code: give --config or --model beside it, or, if you trust who '
            'made it, download it and give its path'
        )
    with naming(f'the config in {source}'):
        return Config.fromstring(text, '.py')


def write_pictures(predictions: Iterable[Prediction], folder: Path) -> Iterator[Prediction]:
    """Writes pictures as they come. ``a.jpg`` gives ``a_prediction.png``, a second one ``a_prediction_2.png``."""
    names: Counter[str] = Counter()
    for prediction in predictions:
        if prediction.picture is not None:
            stem = f'{Path(prediction.file).stem}_prediction'
            names[stem] += 1
            number = f'_{names[stem]}' if names[stem] > 1 else ''
            with replacing(folder / f'{stem}{number}.png') as part:
                part.write_bytes(cv2.imencode('.png', prediction.picture[..., ::-1])[1].tobytes())
        yield prediction
