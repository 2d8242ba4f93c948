"""The predictions of each toolbox's inferencer, as rows of a table and as a picture."""

from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from torch.nn.functional import interpolate

from .names import Names
from .photos import to_picture

# Pixels. Photographs with a smaller side are enlarged, to make room for names, but not beyond the longest side.
LEAST_SIDE, LONGEST_SIDE = 320, 1024


class Task:
    """An inferencer, and how its results are listed and drawn. Its pipeline takes loaded images.

    ``score_threshold`` is the lowest score of a row, and ``top`` is the largest number of rows of a photograph. None
    stands for the task's default.
    """

    name = ''

    def __init__(self, config: Config, device: str, score_threshold: float | None, top: int | None) -> None:
        self.score_threshold, self.top = score_threshold, top
        self.inferencer = self.build(config, device)

    def build(self, config: Config, device: str) -> Any:
        """Builds the toolbox's inferencer, with a visualizer that writes nowhere."""
        raise NotImplementedError

    def set_names(self, names: Names) -> None:
        """Sets the names and colours of the classes."""
        self.names = names
        meta = dict(classes=names.classes or None, palette=names.palette)
        self.inferencer.model.dataset_meta = self.inferencer.visualizer.dataset_meta = meta

    def infer(self, image: np.ndarray) -> Any:
        """Returns the toolbox's data sample of an image."""
        found = self.inferencer([image], return_datasamples=True)
        found = found['predictions'] if isinstance(found, dict) else found  # mmdet
        return found[0] if isinstance(found, list) else found  # mmseg gives the sample itself

    def list_rows(self, sample) -> list[dict]:
        """Returns the rows of a sample, the best first, and removes all other results from it."""
        raise NotImplementedError

    def draw(self, image: np.ndarray, sample, rows: list[dict]) -> np.ndarray:
        """Draws a sample. Returns 8-bit RGB (H, W, 3)."""
        raise NotImplementedError


class Classification(Task):
    """Classification, by mmpretrain's inferencer."""

    name = 'classification'

    def build(self, config: Config, device: str) -> Any:
        """Builds mmpretrain's inferencer."""
        from mmpretrain import ImageClassificationInferencer
        from mmpretrain.visualization import UniversalVisualizer

        inferencer = ImageClassificationInferencer(config, pretrained=False, device=device)
        inferencer.visualizer = UniversalVisualizer()
        return inferencer

    def list_rows(self, sample) -> list[dict]:
        """Returns the classes with the highest scores."""
        _check_finite(sample.pred_score)
        scores, labels = sample.pred_score.sort(descending=True)
        count = min(self.top or 5, int((scores >= (self.score_threshold or 0)).sum()))
        sample.set_pred_label(labels[:count])
        return [
            dict(label=label, what=self.names.of(label), score=score)
            for label, score in zip(labels[:count].tolist(), scores[:count].tolist(), strict=True)
        ]

    def draw(self, image: np.ndarray, sample, rows: list[dict]) -> np.ndarray:
        """Writes the names on the picture."""
        # The inferencer's own `visualize` draws only what it also shows or saves.
        visualizer = self.inferencer.visualizer
        return visualizer.visualize_cls(_enlarged(image), sample, classes=self.names.classes or None, draw_gt=False)


class Detection(Task):
    """Detection and instance segmentation, by mmdet's inferencer."""

    name = 'detection'

    def build(self, config: Config, device: str) -> Any:
        """Builds mmdet's inferencer."""
        from mmdet.apis import DetInferencer

        config.visualizer = dict(type='DetLocalVisualizer')
        return DetInferencer(config, device=device, show_progress=False)

    def list_rows(self, sample) -> list[dict]:
        """Returns the boxes."""
        if 'pred_instances' not in sample:
            raise ValueError('predict lists boxes, and the model predicts none: use mmdet.apis.DetInferencer')
        found = sample.pred_instances
        found = found[found.scores >= (0.3 if self.score_threshold is None else self.score_threshold)]
        sample.pred_instances = found[found.scores.argsort(descending=True)[: self.top]]
        found = self.inferencer.pred2dict(sample)  # has boxes even if a model predicts only masks
        return [
            dict(label=label, what=self.names.of(label), score=score, box=box)
            for label, score, box in zip(found['labels'], found['scores'], found['bboxes'], strict=True)
        ]

    def draw(self, image: np.ndarray, sample, rows: list[dict]) -> np.ndarray:
        """Draws boxes, masks and names."""
        picture, found = _enlarged(image), sample.pred_instances
        if not rows:
            return picture
        found.bboxes = found.bboxes * (picture.shape[1] / image.shape[1])
        if 'masks' in found:
            found.masks = _resized(found.masks, picture).bool()
        return self.inferencer.visualize([picture], [sample], return_vis=True, pred_score_thr=0)[0]


class Segmentation(Task):
    """Semantic segmentation, by mmsegmentation's inferencer."""

    name = 'segmentation'

    def build(self, config: Config, device: str) -> Any:
        """Builds mmsegmentation's inferencer."""
        from mmseg.apis import MMSegInferencer

        config.visualizer = dict(type='SegLocalVisualizer')
        return MMSegInferencer(config, device=device)

    def list_rows(self, sample) -> list[dict]:
        """Returns each class's share of the image."""
        if 'seg_logits' in sample:
            _check_finite(sample.seg_logits.data)
        # Labels are floats after a sigmoid.
        labels, counts = sample.pred_sem_seg.data.long().unique(return_counts=True)
        shares, order = (counts / counts.sum()).sort(descending=True)
        rows = zip(labels[order].tolist(), shares.tolist(), strict=True)
        return [dict(label=label, what=self.names.of(label), share=share) for label, share in rows][: self.top]

    def draw(self, image: np.ndarray, sample, rows: list[dict]) -> np.ndarray:
        """Draws the classes in colours, with a legend."""
        picture = _enlarged(image)
        sample.pred_sem_seg = PixelData(data=_resized(sample.pred_sem_seg.data, picture).long())
        # A legend has the names, since mmseg would draw them with OpenCV, which can draw only ASCII.
        self.inferencer.visualize([picture], [sample], return_vis=True, opacity=0.5, with_labels=False)
        visualizer = self.inferencer.visualizer
        size = max(9, min(picture.shape[:2]) // 40)  # points
        for place, row in enumerate(rows[: int(picture.shape[0] / (2.2 * size))]):
            colour = tuple(value / 255 for value in self.names.palette[row['label']])
            position = np.array((size, (2.2 * place + 0.5) * size))
            box = dict(facecolor='white', edgecolor=colour, linewidth=2, pad=1.5)
            visualizer.draw_texts(row['what'], position, font_sizes=size, colors='black', bboxes=box)
        return visualizer.get_image()


# By the scope of the configs.
TASKS: dict[str, type[Task]] = {'mmpretrain': Classification, 'mmdet': Detection, 'mmseg': Segmentation}


def _check_finite(values: torch.Tensor) -> None:
    if not values.isfinite().all():
        raise ValueError('its scores are NaN or infinite: the weights or its values are too large, or are NaN')


def _enlarged(image: np.ndarray) -> np.ndarray:
    """Returns an image as a picture that is large enough for names."""
    picture = to_picture(image)
    height, width = picture.shape[:2]
    scale = max(1, min(LEAST_SIDE / min(height, width), LONGEST_SIDE / max(height, width)))
    return mmcv.imresize(picture, (round(width * scale), round(height * scale)))


def _resized(maps: torch.Tensor, picture: np.ndarray) -> torch.Tensor:
    """Returns maps (C, H, W) of the size of a picture."""
    return interpolate(maps[None].float(), picture.shape[:2])[0]
