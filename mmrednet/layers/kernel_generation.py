"""The kernel generation function phi: from the features of a pixel to the involution kernels of that pixel (eq. 5).

A phi of one's own is a registered module with the constructor arguments ``channels`` and ``kernel_channels`` that maps
(N, channels, Ho, Wo) to (N, kernel_channels, Ho, Wo), where ``kernel_channels = G * Kh * Kw``, ordered as (G, Kh, Kw).
"""

from collections import OrderedDict

from mmcv.cnn import ConvModule
from torch import nn

from ..registry import MODELS


@MODELS.register_module()
class BottleneckKernelGeneration(nn.Sequential):
    """The paper's choice, ``W1 sigma(BN(W0 x))`` with 1x1 convolutions W0 and W1 (eq. 6).

    Args:
        channels (int): Channels C of the features.
        kernel_channels (int): Channels of the generated kernels, ``G * Kh * Kw``.
        reduction_ratio (int): ``r``, by which W0 reduces the channels. Defaults to 4.
        norm_cfg (dict): Norm layer after W0. Defaults to ``dict(type='BN')``.
        act_cfg (dict): Activation sigma. Defaults to ``dict(type='ReLU')``.

    Raises:
        ValueError: ``reduction_ratio`` leaves no channel.
    """

    def __init__(
        self,
        channels: int,
        kernel_channels: int,
        reduction_ratio: int = 4,
        norm_cfg: dict | None = dict(type='BN'),
        act_cfg: dict | None = dict(type='ReLU'),
    ) -> None:
        if not 1 <= reduction_ratio <= channels:
            raise ValueError(
                f'reduction_ratio must be from 1 to the number of channels, {channels}, but is {reduction_ratio}'
            )
        reduced = channels // reduction_ratio
        super().__init__(
            OrderedDict(
                conv1=ConvModule(channels, reduced, 1, norm_cfg=norm_cfg, act_cfg=act_cfg),
                conv2=ConvModule(reduced, kernel_channels, 1, act_cfg=None),
            )
        )


@MODELS.register_module()
class LinearKernelGeneration(nn.Sequential):
    """A single 1x1 convolution W (row "W" of Table 6c).

    Args:
        channels (int): Channels C of the features.
        kernel_channels (int): Channels of the generated kernels, ``G * Kh * Kw``.
    """

    def __init__(self, channels: int, kernel_channels: int) -> None:
        super().__init__(OrderedDict(conv=ConvModule(channels, kernel_channels, 1, act_cfg=None)))
