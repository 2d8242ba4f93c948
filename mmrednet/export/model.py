"""The part of a toolbox's model that can be exported, and the images that it is traced and checked with."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {'float32': torch.float32, 'float16': torch.float16}


class ExportableModel(nn.Module):
    """The part of a toolbox's model whose control flow does not depend on data: images in, a tuple of tensors out.

    The images (N, C, H, W) are those that the model's data preprocessor returns. The outputs are

    - for a classifier, its logits, (N, classes),
    - for a segmentor, its logits at the size of the images, (N, classes, H, W),
    - for a detector, the outputs of its dense head, (N, C_i, H_i, W_i) for each level i. The dense head of a two-stage
      detector is the RPN.

    Args:
        model (nn.Module): A classifier of mmpretrain, a detector of mmdet or a segmentor of mmseg. It is put into
            evaluation mode, and its SyncBN layers are replaced by BatchNorm layers.

    Raises:
        ValueError: The model is of another kind, or it is a detector without a dense head.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        from mmengine.model import revert_sync_batchnorm

        self.model: Any = revert_sync_batchnorm(model).eval()
        bases = {base.__name__ for base in type(model).__mro__}
        if 'BaseClassifier' in bases:
            self._outputs = self._classify
        elif 'BaseSegmentor' in bases and hasattr(model, 'encode_decode'):
            self._outputs = self._segment
        elif bases & {'SingleStageDetector', 'TwoStageDetector'} and hasattr(self._head, 'loss_by_feat'):
            self._outputs = self._detect
        else:
            raise ValueError(
                f'{type(model).__name__} cannot be exported: give a classifier, a segmentor that decodes feature maps, '
                'or a detector of one or two stages with a dense head'
            )

    @property
    def channels(self) -> int:
        """The number of channels of the images: that of the backbone's first convolution."""
        return next(layer.in_channels for layer in self.model.backbone.modules() if isinstance(layer, nn.Conv2d))

    @property
    def _head(self) -> Any:
        """The detector's head that computes an output for every pixel of every level."""
        return getattr(self.model, 'rpn_head', None) or getattr(self.model, 'bbox_head', None)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs in the order of :meth:`names`."""
        return tuple(self._outputs(images).values())

    def names(self, images: Tensor) -> list[str]:
        """Returns the names of the outputs: ``logits``, or ``cls_scores_0`` and so on, one for each level."""
        return list(self._outputs(images))

    def _classify(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.model(images, mode='tensor')
        if not isinstance(logits, Tensor):
            raise ValueError(f'a classifier must end in one head to be exported, but gives {type(logits).__name__}')
        return dict(logits=logits)

    def _segment(self, images: Tensor) -> dict[str, Tensor]:
        return dict(logits=self.model.encode_decode(images, [dict(img_shape=images.shape[2:])]))

    def _detect(self, images: Tensor) -> dict[str, Tensor]:
        # The loss takes the outputs of the head as its first arguments, so their names are the outputs' names.
        names = signature(self._head.loss_by_feat).parameters
        return {
            f'{name}_{i}': tensor
            for name, output in zip(names, self._head(self.model.extract_feat(images)), strict=False)
            for i, tensor in enumerate([output] if isinstance(output, Tensor) else output)
        }


def fill_zeroed_norms(network: nn.Module) -> None:
    """Replaces zero weights of norm layers by random ones: an untrained RedNet's involutions then reach its outputs."""
    for module in network.modules():
        weight = getattr(module, 'weight', None)
        # The weights of norm layers are vectors.
        if isinstance(weight, nn.Parameter) and weight.ndim == 1 and not weight.any():
            nn.init.uniform_(weight, 0.5, 1)


def example(network: ExportableModel, size: tuple[int, int, int]) -> Tensor:
    """Returns random images of a batch size, height and width in the network's dtype, always the same ones."""
    batch, height, width = size
    images = torch.randn(batch, network.channels, height, width, generator=torch.Generator().manual_seed(0))
    return images.to(next(network.parameters()).dtype)


def trace_size(size: tuple[int, int]) -> tuple[int, int, int]:
    """Returns the batch size, height and width to trace with.

    An exporter takes a size of 1 for a constant and two equal sizes for the same size. So no size is 1, and height and
    width differ.
    """
    height, width = size[0] | 1, size[1] | 1
    return 2, height, width + 2 if width == height else width
