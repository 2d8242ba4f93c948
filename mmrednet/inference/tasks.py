"""What each toolbox's inferencer predicts, as rows of a table and as a picture."""

from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from torch.nn.functional import interpolate

from .names import Names
from .photos import to_picture

LEAST_SIDE, LONGEST_SIDE = 320, 1024  # pixels of a picture: names need room, but no more than this is added


class Task:
    """An inferencer, and how its results are listed and drawn.

    Args:
        config (Config): The config of the model. Its test pipeline takes images that are loaded.
        device (str): Where the model computes.
        score_threshold (float, optional): The least score of a row. None means the task's own.
        top (int, optional): The most rows of a photograph. None means the task's own.
    """

    name = header = ''
    inferencer: Any

    def __init__(self, config: Config, device: str, score_threshold: float | None = None, top: int | None = None):
        self.score_threshold, self.top = score_threshold, top

    def set_names(self, names: Names) -> None:
        """Sets the names and colours of the classes."""
        self.names = names
        self.meta = dict(classes=names.classes or None, palette=names.palette)
        self.inferencer.model.dataset_meta = self.meta
        if self.inferencer.visualizer is not None:
            self.inferencer.visualizer.dataset_meta = self.meta

    def infer(self, images: list[np.ndarray]) -> list:
        """Returns the toolbox's data sample of each image."""
        found = self.inferencer(images, return_datasamples=True, batch_size=len(images))
        if isinstance(found, dict):  # mmdet
            found = found['predictions']
        return found if isinstance(found, list) else [found]  # mmseg unpacks a list of one

    def list_rows(self, sample) -> list[dict]:
        """Returns what a sample holds, the best first, and leaves nothing else in the sample."""
        raise NotImplementedError

    def format(self, row: dict) -> str:
        """Returns a row as text."""
        raise NotImplementedError

    def draw(self, image: np.ndarray, sample, rows: Sequence[dict]) -> np.ndarray:
        """Draws a sample. Returns 8-bit RGB (H, W, 3)."""
        raise NotImplementedError

    def _shares(self, labels: torch.Tensor) -> list[dict]:
        labels, counts = labels.long().unique(return_counts=True)  # mmseg's are floats after a sigmoid
        shares, order = (counts / counts.sum()).sort(descending=True)
        return [
            dict(label=label, what=self.names.of(label), share=share)
            for label, share in zip(labels[order].tolist(), shares.tolist(), strict=True)
        ][: self.top]


class Classification(Task):
    """Classification, by mmpretrain's inferencer."""

    name, header = 'classification', 'score  what'

    def __init__(self, config: Config, device: str, **limits) -> None:
        from mmpretrain import ImageClassificationInferencer

        super().__init__(config, device, **limits)
        self.inferencer = ImageClassificationInferencer(config, pretrained=False, device=device)

    def list_rows(self, sample) -> list[dict]:
        """Returns the classes with the highest scores."""
        _require(sample, 'pred_score', 'class scores', 'mmpretrain.inference_model')
        _check_finite(sample.pred_score)
        scores, labels = sample.pred_score.sort(descending=True)
        count = min(self.top or 5, int((scores >= (self.score_threshold or 0)).sum()))
        sample.set_pred_label(labels[:count])
        return [
            dict(label=label, what=self.names.of(label), score=score)
            for label, score in zip(labels[:count].tolist(), scores[:count].tolist(), strict=True)
        ]

    def format(self, row: dict) -> str:
        """Returns score and name."""
        return f'{row["score"]:.3f}  {row["what"]}'

    def draw(self, image: np.ndarray, sample, rows: Sequence[dict]) -> np.ndarray:
        """Writes the names on the picture."""
        from mmpretrain.visualization import UniversalVisualizer

        # The inferencer's own `visualize` draws only what it also shows or saves.
        visualizer = UniversalVisualizer()
        return visualizer.visualize_cls(_enlarged(image), sample, classes=self.names.classes or None, draw_gt=False)


class Detection(Task):
    """Detection, instance and panoptic segmentation, by mmdet's inferencer."""

    name, header = 'detection', f'score  {"x1 y1 x2 y2":19}  what'

    def __init__(self, config: Config, device: str, **limits) -> None:
        from mmdet.apis import DetInferencer

        super().__init__(config, device, **limits)
        if not config.get('visualizer'):
            config.visualizer = dict(type='DetLocalVisualizer')
        self.inferencer = DetInferencer(config, device=device, show_progress=False)

    def list_rows(self, sample) -> list[dict]:
        """Returns boxes, or the shares of the image that panoptic segments take where there are no boxes."""
        if 'pred_instances' not in sample:
            from mmdet.evaluation import INSTANCE_OFFSET

            _require(sample, 'pred_panoptic_seg', 'boxes and no segments', 'mmdet.apis.inference_detector')
            return self._shares(sample.pred_panoptic_seg.sem_seg % INSTANCE_OFFSET)
        found = sample.pred_instances
        found = found[found.scores >= (0.3 if self.score_threshold is None else self.score_threshold)]
        found = sample.pred_instances = found[found.scores.argsort(descending=True)[: self.top]]
        if 'masks' in found and not ('bboxes' in found and found.bboxes.any()):  # SOLO predicts masks alone
            from mmdet.structures.mask import mask2bbox

            found.bboxes = mask2bbox(found.masks.cpu()).to(found.scores)
        return [
            dict(label=label, what=self.names.of(label), score=score, box=box)
            for label, score, box in zip(
                found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist(), strict=True
            )
        ]

    def _is_void(self, sample) -> bool:
        from mmdet.evaluation import INSTANCE_OFFSET

        return bool((sample.pred_panoptic_seg.sem_seg % INSTANCE_OFFSET >= len(self.names.classes)).all())

    def format(self, row: dict) -> str:
        """Returns score, box and name."""
        if 'share' in row:
            return f'{row["share"]:5.1%}  {"":19}  {row["what"]}'
        return f'{row["score"]:.3f}  {" ".join(f"{side:.0f}" for side in row["box"]):19}  {row["what"]}'

    def draw(self, image: np.ndarray, sample, rows: Sequence[dict]) -> np.ndarray:
        """Draws boxes, masks and names."""
        picture = _enlarged(image)
        if 'pred_panoptic_seg' in sample and self._is_void(sample):
            del sample.pred_panoptic_seg  # mmdet cannot draw it
        if picture.shape[:2] != image.shape[:2]:
            height, width = (new / old for new, old in zip(picture.shape[:2], image.shape[:2], strict=True))
            found = sample.get('pred_instances', ())
            if 'bboxes' in found:
                found.bboxes = found.bboxes * found.bboxes.new_tensor((width, height, width, height))
            if 'masks' in found:
                found.masks = _resized_maps(found.masks, picture).bool()
            if 'pred_panoptic_seg' in sample:
                segments = _resized_maps(sample.pred_panoptic_seg.sem_seg, picture).long()
                sample.pred_panoptic_seg = PixelData(sem_seg=segments)
        return self.inferencer.visualize([picture], [sample], return_vis=True, pred_score_thr=0)[0]


class Segmentation(Task):
    """Semantic segmentation, by mmsegmentation's inferencer."""

    name, header = 'segmentation', 'share  what'

    def __init__(self, config: Config, device: str, score_threshold: float | None = None, top: int | None = None):
        from mmseg.apis import MMSegInferencer

        if score_threshold is not None:
            raise ValueError('--score-threshold is for classification and detection: a segmentation has no scores')
        super().__init__(config, device, score_threshold, top)
        if not config.get('visualizer'):
            config.visualizer = dict(type='SegLocalVisualizer')
        self.inferencer = MMSegInferencer(config, device=device)
        self.inferencer.show_progress = False

    def list_rows(self, sample) -> list[dict]:
        """Returns each class's share of the image."""
        _require(sample, 'pred_sem_seg', 'classes of pixels', 'mmseg.apis.MMSegInferencer')
        if 'seg_logits' in sample:
            _check_finite(sample.seg_logits.data)
        return self._shares(sample.pred_sem_seg.data)

    def format(self, row: dict) -> str:
        """Returns share and name."""
        return f'{row["share"]:5.1%}  {row["what"]}'

    def draw(self, image: np.ndarray, sample, rows: Sequence[dict]) -> np.ndarray:
        """Draws the classes in colours, with a legend."""
        from mmseg.structures import SegDataSample

        picture = _enlarged(image)
        labels = PixelData(data=_resized_maps(sample.pred_sem_seg.data, picture).long())
        sample = SegDataSample(pred_sem_seg=labels)
        # mmseg's own names are drawn by OpenCV, which has ASCII alone.
        self.inferencer.visualize([picture], [sample], return_vis=True, opacity=0.5, with_labels=False)
        visualizer = self.inferencer.visualizer
        size = max(9, min(picture.shape[:2]) // 40)  # points
        pitch = 2.2 * size  # pixels
        for place, row in enumerate(rows[: max(1, int(picture.shape[0] // pitch))]):
            colour = tuple(value / 255 for value in self.names.palette[row['label']])
            box = dict(facecolor=colour, edgecolor='none', alpha=0.9, pad=1.5)
            ink = 'white' if np.dot(colour, (0.3, 0.6, 0.1)) < 0.5 else 'black'
            position = np.array((size, place * pitch + 0.5 * size))
            visualizer.draw_texts(row['what'], position, font_sizes=size, colors=ink, bboxes=box)
        return visualizer.get_image()


# By the scope of the configs.
TASKS: dict[str, type[Task]] = {'mmpretrain': Classification, 'mmdet': Detection, 'mmseg': Segmentation}


def _require(sample, key: str, what: str, other: str) -> None:
    if key not in sample:
        raise ValueError(f'the model predicts no {what} but {", ".join(sample.keys()) or "nothing"}: use {other}')


def _check_finite(values: torch.Tensor) -> None:
    if not values.isfinite().all():
        raise ValueError(
            'its scores are NaN or infinite: its values or the weights are too large, or the image has NaN'
        )


def _enlarged(image: np.ndarray) -> np.ndarray:
    """Returns an image as a picture that is large enough for names."""
    picture = to_picture(image)
    height, width = picture.shape[:2]
    scale = max(1, min(LEAST_SIDE / min(height, width), LONGEST_SIDE / max(height, width)))
    return mmcv.imresize(picture, (round(width * scale), round(height * scale)))


def _resized_maps(maps: torch.Tensor, picture: np.ndarray) -> torch.Tensor:
    """Returns maps (C, H, W) of the size of a picture. C may be 0."""
    if not len(maps):
        return maps.new_zeros(0, *picture.shape[:2])
    return interpolate(maps[None].float(), picture.shape[:2])[0]
