"""Stand-Alone ResNet (Ramachandran et al., NeurIPS 2019), which the paper compares RedNet with in Table 1."""

from functools import partial

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from ..layers import LocalAttention
from ..registry import register_model
from .backbone import ResNetBackbone
from .blocks import Bottleneck, conv_stem

STEMS = ('attention', 'conv')
SIDE = 4  # height and width in pixels of the blocks of the attention stem
HEADS = 4  # of the attention stem
MIXTURES = 4  # matrices that a value in the attention stem is a mixture of


@register_model()
class StandAloneResNet(ResNetBackbone):
    """Stand-Alone ResNet-26, 38 and 50, ResNet with local self-attention in the place of its 3x3 convolutions.

    The attention is :class:`mmrednet.layers.SelfAttentionKernelGeneration` on a border of zeros. In a block with a
    stride it runs at the input's resolution, and average pooling follows it. The authors published no code. The borders
    and the 4 heads of the stem are those of other implementations.

    Args:
        depth (int): 26, 38 or 50.
        in_channels (int): Channels of the image. Defaults to 3.
        stem (str): 'attention' (:class:`AttentionStem`, then 4x4 max pooling) or 'conv' (ResNet's). Defaults to
            'attention'.
        stem_channels (int): Channels of the stem's output. Defaults to 64.
        base_channels (int): Channels of the attention in the first stage. Defaults to 64.
        kernel_size (int): Window of the attention, an odd number. Defaults to 7.
        groups (int): Heads of the attention. Defaults to 8.
        norm_cfg (dict): Norm layers. Defaults to ``dict(type='BN', requires_grad=True)``.
        with_cp (bool): Whether blocks recompute activations in the backward pass, for less memory. Defaults to False.
        backend (str, optional): Backend of :func:`mmrednet.ops.involution2d`. Defaults to None, the fastest.
        **kwargs: As in :class:`.backbone.ResNetBackbone`.

    Raises:
        TypeError: There is no argument of that name.
        ValueError: An argument is out of its range, or the heads do not divide the channels.

    Shape:
        As in :class:`mmrednet.models.rednet.RedNet`.
    """

    arch_settings = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3)}

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        stem: str = 'attention',
        stem_channels: int = 64,
        base_channels: int = 64,
        kernel_size: int = 7,
        groups: int = 8,
        norm_cfg: dict = dict(type='BN', requires_grad=True),
        with_cp: bool = False,
        backend: str | None = None,
        **kwargs,
    ) -> None:
        super().__init__(depth, **kwargs)
        if stem == 'attention':
            self.stem: nn.Module = nn.Sequential(
                AttentionStem(in_channels, stem_channels), build_norm_layer(norm_cfg, stem_channels)[1]
            )
            self.maxpool = nn.MaxPool2d(SIDE, ceil_mode=True)
        elif stem == 'conv':
            self.stem = conv_stem(in_channels, stem_channels, norm_cfg)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            raise ValueError(f'stem must be one of {STEMS}, but is {stem!r}')
        spatial = partial(make_attention, kernel_size=kernel_size, groups=groups, backend=backend)
        out_channels = Bottleneck.expansion * base_channels
        self.add_stages(stem_channels, base_channels, out_channels, spatial, norm_cfg, with_cp)
        self.finish()


def make_attention(channels: int, stride: int, **kwargs) -> nn.Module:
    """Makes local self-attention at the input's resolution. With a stride, average pooling follows it.

    Args:
        channels (int): Channels of input and output.
        stride (int): Stride in pixels.
        **kwargs: Arguments of :class:`mmrednet.layers.LocalAttention`.
    """
    attention = LocalAttention(channels, **kwargs)
    return attention if stride == 1 else nn.Sequential(attention, nn.AvgPool2d(stride, ceil_mode=True))


class AttentionStem(nn.Module):
    """Self-attention inside blocks of 4x4 pixels, with a value matrix for each position in a block.

    It is ``softmax(q . k + q . r) v`` over the block. ``r`` is as in
    :class:`mmrednet.layers.SelfAttentionKernelGeneration`. The value matrix of a position is a mixture of four
    matrices, whose weights are a softmax (section 3.2 of Stand-Alone ResNet). An image whose size is no multiple of
    four is padded with zeros at the bottom and on the right.

    Args:
        in_channels (int): Channels of the image.
        channels (int): Channels of the output, a multiple of 8.

    Raises:
        ValueError: ``channels`` is no multiple of 8.

    Shape:
        (N, in_channels, H, W) to (N, channels, H, W).
    """

    offsets: Tensor

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        if channels % (2 * HEADS):
            raise ValueError(
                f"stem_channels must be a multiple of {2 * HEADS} with stem='attention', since the stem has {HEADS} "
                f'heads with an even number of channels, but is {channels}'
            )
        head = channels // HEADS
        # Linear layers and parameters, so that an init_cfg for convolutions does not change their initial values.
        self.query, self.key = (nn.Linear(in_channels, channels, bias=False) for _ in range(2))
        self.values = nn.Parameter(torch.empty(MIXTURES, channels, in_channels))
        for weight in (self.query.weight, self.key.weight, self.values):
            nn.init.normal_(weight, std=in_channels**-0.5)
        self.rows, self.columns = (nn.Parameter(torch.randn(2 * SIDE - 1, head // 2) * head**-0.5) for _ in range(2))
        self.row_embeddings, self.column_embeddings = (nn.Parameter(torch.randn(SIDE, channels)) for _ in range(2))
        self.mixtures = nn.Parameter(torch.randn(MIXTURES, channels) * channels**-0.5)
        # The row of the table for each pair of positions: the key's position minus the query's.
        offsets = torch.arange(SIDE) - torch.arange(SIDE)[:, None] + SIDE - 1
        self.register_buffer('offsets', offsets, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the stem to images ``x`` (N, in_channels, H, W)."""
        height, width = x.shape[2:]
        rows, columns = (height + SIDE - 1) // SIDE, (width + SIDE - 1) // SIDE
        x = F.pad(x, (0, columns * SIDE - width, 0, rows * SIDE - height))
        # (N, rows, columns, 16, in_channels)
        blocks = x.unflatten(3, (columns, SIDE)).unflatten(2, (rows, SIDE)).permute(0, 2, 4, 3, 5, 1).flatten(3, 4)
        query, key = (linear(blocks).unflatten(4, (HEADS, -1)) for linear in (self.query, self.key))
        logits = torch.einsum('nijqhc,nijkhc->nijhqk', query, key)
        logits = logits + torch.einsum('nijqhc,qkc->nijhqk', query, self._embeddings())
        value = torch.einsum('nijkc,kdc->nijkd', blocks, self._value_matrices()).unflatten(4, (HEADS, -1))
        out = torch.einsum('nijhqk,nijkhc->nijqhc', logits.softmax(-1), value)
        # (N, rows, columns, 4, 4, channels) to (N, channels, 4 * rows, 4 * columns)
        out = out.flatten(4).unflatten(3, (SIDE, SIDE)).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return out[:, :, :height, :width]

    def _embeddings(self) -> Tensor:
        """Returns ``r`` for each query and key of a block, (16, 16, channels / HEADS)."""
        size = (SIDE,) * 4
        rows = self.rows[self.offsets][:, None, :, None].expand(*size, -1)
        columns = self.columns[self.offsets][None, :, None, :].expand(*size, -1)
        return torch.cat([rows, columns], -1).flatten(2, 3).flatten(0, 1)

    def _value_matrices(self) -> Tensor:
        """Returns the value matrix of each position in a block, (16, channels, in_channels)."""
        positions = self.row_embeddings[:, None] + self.column_embeddings[None]
        weights = (positions.flatten(0, 1) @ self.mixtures.t()).softmax(1)
        return torch.einsum('km,mdc->kdc', weights, self.values)
