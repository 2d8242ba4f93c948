"""AA-ResNet: ResNet with attention-augmented convolutions (Bello et al., ICCV 2019), for every toolbox."""

from collections.abc import Sequence

from torch import nn

from ..layers import AugmentedConv2d
from ..registry import register_model
from .backbone import ResNetBackbone
from .blocks import Bottleneck

HEADS = 8


@register_model()
class AAResNet(ResNetBackbone):
    """AA-ResNet-50, 101 and 152 (Table 1): ResNet whose 3x3 convolutions in the last three stages are augmented.

    In a block with C channels in the middle, the attention has 0.1 C value channels and 0.2 C key channels, both
    rounded to a multiple of 8, and at least 20 key channels for each of the 8 heads. In the second stage it runs on a
    map of half the size. The paper does not print its rounding. This one gives its parameters to the printed digit.

    The tables of relative positions are made for images of 224x224 pixels, and
    :func:`mmrednet.layers.global_attention.resize_table` fits them to other sizes. Memory grows with the square of the
    number of pixels.

    Args:
        depth (int): 50, 101 or 152.
        in_channels (int): Channels of the image. Defaults to 3.
        released (bool): Whether to build the network of the released AA-ResNet-50 of d-li14/dot-product-attention. It
            has no least number of key channels. In the second stage its convolution runs on the smaller map, too. Its
            values are reshaped without a transposition. Defaults to False: the network of the paper.
        num_stages (int): Stages to build, from 1 to 4. Defaults to 4.
        strides (Sequence[int]): Stride of each stage. Defaults to (1, 2, 2, 2).
        dilations (Sequence[int]): Dilation of each stage. Attention ignores it. Defaults to (1, 1, 1, 1).
        out_indices (Sequence[int]): Stages, from 0, whose outputs are returned. Defaults to (3,).
        norm_cfg (dict): Norm layers. Defaults to ``dict(type='BN', requires_grad=True)``.
        with_cp (bool): Whether blocks recompute activations in the backward pass, for less memory. Defaults to False.
        **kwargs: ``frozen_stages``, ``norm_eval``, ``zero_init_residual``, ``init_cfg``, ``pretrained`` and others, as
            in :class:`.backbone.ResNetBackbone` and :class:`.backbone.Backbone`.

    Raises:
        TypeError: AAResNet has no argument of that name.
        ValueError: An argument is out of its range.

    Shape:
        (N, in_channels, H, W) to a tuple of (N, C_i, H_i, W_i), where ``C_i = 256 * 2^i`` and, with the default
        strides, ``H_i = ceil(H / 2^(i + 2))``.
    """

    arch_settings = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        released: bool = False,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (3,),
        norm_cfg: dict = dict(type='BN', requires_grad=True),
        with_cp: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(depth, num_stages, strides, dilations, out_indices=out_indices, **kwargs)
        self.released = released
        self.add_conv_stem(in_channels, 64, norm_cfg)
        self.add_stages(64, 64, 64 * Bottleneck.expansion, self._make_conv, norm_cfg, with_cp)
        self.finish()

    def _make_conv(self, channels: int, stride: int, dilation: int) -> nn.Module:
        if channels == 64:
            return nn.Conv2d(channels, channels, 3, stride, dilation, dilation, bias=False)
        pool = None
        if channels == 128:
            pool = 'all' if self.released else 'attention'
        return AugmentedConv2d(
            channels,
            channels,
            kernel_size=3,
            key_channels=max(_round(0.2 * channels), 0 if self.released else 20 * HEADS),
            value_channels=_round(0.1 * channels),
            size=7 if channels == 512 else 14,
            heads=HEADS,
            stride=stride,
            dilation=dilation,
            pool=pool,
            transpose_values=not self.released,
        )


def _round(channels: float) -> int:
    """Rounds to the nearest positive multiple of the number of heads."""
    return max(1, round(channels / HEADS)) * HEADS
