"""Axial ResNet: ResNet with attention along each axis (Wang et al., ECCV 2020), for every toolbox."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from ..layers import AxialAttention
from ..registry import register_model
from .backbone import ResNetBackbone, refuse
from .blocks import make_downsample, run_branch

STEMS = ('attention', 'conv')
FIXED = ('strides', 'dilations', 'contract_dilation', 'multi_grid')  # ResNetBackbone's arguments without effect here


class AxialBlock(BaseModule):
    """A bottleneck block with attention along the height and then along the width.

    Args:
        in_channels (int): Channels of the input.
        mid_channels (int): Channels of the attention. The output has twice as many.
        stride (int): Stride in pixels. Each axis has it after the attention along that axis. Defaults to 1.
        size (int): Pixels of an axis for which the tables are made. Defaults to 255, as in the authors' code.
        span (int, optional): As in :class:`mmrednet.layers.AxialAttention`. Defaults to None.
        pool (bool): Whether average pooling after both layers takes the place of the strides. Defaults to False.
        with_cp (bool): Whether to recompute activations in the backward pass. Defaults to False.

    Shape:
        (N, in_channels, H, W) to (N, 2 * mid_channels, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 2
    last_norm = 'bn2'  # a backbone with zero_init_residual sets its weights to zero

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        stride: int = 1,
        size: int = 255,
        span: int | None = None,
        pool: bool = False,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        out_channels = self.expansion * mid_channels
        self.conv_down = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid_channels)
        self.height_block = AxialAttention(mid_channels, mid_channels, 'height', size, span=span)
        self.width_block = AxialAttention(mid_channels, mid_channels, 'width', size, span=span)
        self.conv_up = nn.Conv2d(mid_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if pool else None
        self.downsample = make_downsample(in_channels, out_channels, stride, dict(type='BN'))
        self.stride, self.with_cp = stride, with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to ``x`` (N, in_channels, H, W)."""
        return self.relu(run_branch(self._residual, x, self.with_cp))

    def _residual(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.height_block(self.relu(self.bn1(self.conv_down(x))))
        if self.pool is None:
            out = self.width_block(out[:, :, :: self.stride])[..., :: self.stride]
        else:
            out = self.pool(self.width_block(out))
        return self.bn2(self.conv_up(self.relu(out))) + identity


@register_model()
class AxialResNet(ResNetBackbone):
    """Axial ResNet-S, M and L (Table 1), with axial attention in the stem or a convolution.

    With an attention stem, every layer attends to a window of 15 pixels. With a convolution stem, it attends to the
    whole axis. The authors' tables of relative positions have 509 entries, for axes of up to 255 pixels;
    :func:`mmrednet.layers.global_attention.resize_table` fits them to each axis.

    Args:
        depth (int): 26 or 50. Defaults to 50, the depth of S, M and L.
        width (float): Multiplier of all channels: 0.5 is S, 0.75 M and 1 L. Defaults to 0.5.
        stem (str): 'attention' or 'conv'. Defaults to 'attention', the form of Table 1.
        in_channels (int): Channels of the image. Defaults to 3.
        released (bool): Whether to build the network of the released checkpoint axial26s of csrhddlam/axial-deeplab. It
            pools instead of the strides after attention, ``width`` applies to its stem, and its tables are made for
            images of 224x224 pixels. Defaults to False: the network of the paper.
        num_stages (int): Stages to build, from 1 to 4. Defaults to 4.
        out_indices (Sequence[int]): Stages, from 0, whose outputs are returned. Defaults to (3,).
        with_cp (bool): Whether blocks recompute activations in the backward pass, for less memory. Defaults to False.
        **kwargs: ``frozen_stages``, ``norm_eval``, ``zero_init_residual``, ``init_cfg`` and ``pretrained``, as in
            :class:`.backbone.Backbone`.

    Raises:
        TypeError: AxialResNet has no argument of that name.
        ValueError: An argument is out of its range.

    Shape:
        (N, in_channels, H, W) to a tuple of (N, C_i, H_i, W_i), where ``C_i = 256 * width * 2^i`` and
        ``H_i = ceil(H / 2^(i + 2))``.
    """

    arch_settings = {26: (1, 2, 4, 1), 50: (3, 4, 6, 3)}

    def __init__(
        self,
        depth: int = 50,
        width: float = 0.5,
        stem: str = 'attention',
        in_channels: int = 3,
        released: bool = False,
        num_stages: int = 4,
        out_indices: Sequence[int] = (3,),
        with_cp: bool = False,
        **kwargs,
    ) -> None:
        _check(stem, width, released)
        refuse('AxialResNet', {name: kwargs[name] for name in FIXED if name in kwargs})
        strides = (2 if stem == 'attention' else 1, 2, 2, 2)
        super().__init__(depth, num_stages, strides, out_indices=out_indices, **kwargs)
        self.width, self.released = width, released
        options = dict(span=15 if stem == 'attention' else None, pool=released, with_cp=with_cp)
        if stem == 'attention':
            mid_channels, channels = int(64 * width), int(128 * width)
            self.stem = _make_stage(in_channels, mid_channels, 2, [255] * 3, options)
            self.parts = (('stem',), *self.parts[1:])
        else:
            channels = int(64 * width) if released else 64
            self.add_conv_stem(in_channels, channels, dict(type='BN'))
        for i in range(num_stages):
            mid_channels = int(128 * width) << i
            sizes = [56 >> i if released else 255] * self.arch_settings[depth][i]
            sizes[0] *= strides[i] if released else 1  # before the pooling
            self.add_module(f'layer{i + 1}', _make_stage(channels, mid_channels, strides[i], sizes, options))
            channels = AxialBlock.expansion * mid_channels
        self.finish()


def _make_stage(in_channels: int, mid_channels: int, stride: int, sizes: Sequence[int], options: dict) -> nn.Sequential:
    """Makes a block with tables for each of ``sizes``. The first block has the stride."""
    blocks = []
    for size in sizes:
        blocks.append(AxialBlock(in_channels, mid_channels, stride, size, **options))
        in_channels, stride = AxialBlock.expansion * mid_channels, 1
    return nn.Sequential(*blocks)


def _check(stem: str, width: float, released: bool) -> None:
    if stem not in STEMS:
        raise ValueError(f'stem must be one of {STEMS}, but is {stem!r}')
    if released and stem != 'conv':
        raise ValueError("released=True needs stem='conv', since no network with another stem was released")
    step = 0.25 if stem == 'attention' else 0.125
    if width <= 0 or width % step:
        raise ValueError(
            f'width must be a positive multiple of {step} with stem={stem!r}, so that the heads divide the channels, '
            f'but is {width!r}'
        )
