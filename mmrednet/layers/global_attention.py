"""Attention over a whole map (AA-ResNet) and over its rows and columns (Axial ResNet). It needs torch alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import involution2d, window_product2d
from ..ops.arguments import IntPair, pair
from ..ops.borders import inside

AXES = ('height', 'width')


def resize_table(table: Tensor, size: int) -> Tensor:
    """Brings a table of relative positions to an axis of ``size`` pixels.

    A shorter axis gets the middle of the table: its distances in pixels are those of training. A longer axis gets a
    linear interpolation, since it has distances that the table does not hold.

    Args:
        table (Tensor): One column for each distance from ``1 - S`` to ``S - 1`` pixels, (C, 2 * S - 1).
        size (int): Pixels of the axis.

    Returns:
        Tensor: One column for each distance from ``1 - size`` to ``size - 1``, (C, 2 * size - 1).
    """
    surplus = table.shape[1] // 2 - (size - 1)
    if surplus >= 0:
        return table[:, surplus : table.shape[1] - surplus]
    return F.interpolate(table[None], 2 * size - 1, mode='linear', align_corners=True)[0]


def pairs_of_pixels(table: Tensor, size: int) -> Tensor:
    """Returns the column of a table for each two pixels of an axis, (C, size, size): [:, i, j] is that of ``j - i``."""
    pixels = torch.arange(size, device=table.device)
    return resize_table(table, size)[:, pixels - pixels[:, None] + size - 1]


def _check_heads(heads: int, **channels: int) -> None:
    for name, value in channels.items():
        if heads < 1 or value < heads or value % heads:
            raise ValueError(f'{name} must be a multiple of the {heads} heads, but is {value}: change one of them')


class AugmentedConv2d(nn.Module):
    """A convolution whose last output channels come from self-attention over the whole map (Bello et al., 2019).

    The logit of a query and a key is ``q . (k + r_H + r_W) / sqrt(d)`` (eqs. 3 to 5). ``r_H`` and ``r_W`` depend on the
    distance of the two pixels on each axis. All heads share these tables, and :func:`resize_table` fits them to other
    sizes of the map.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output, those of the attention included.
        kernel_size (int): Height and width of the convolution's kernel, an odd number.
        key_channels (int): Channels of the queries and of the keys, over all heads.
        value_channels (int): Output channels that come from the attention.
        size (int or pair): Height and width of the map for which the tables are made.
        heads (int): Heads. Defaults to 8.
        stride (int): Stride of the convolution and of the attention in pixels. Defaults to 1.
        dilation (int): Dilation of the convolution. Defaults to 1.
        pool (str, optional): 'attention' runs the attention on a map that a 3x3 average pooling has halved, and
            'all' runs the convolution there, too. Bilinear interpolation brings the result to the size of the output.
            Defaults to None: no pooling.
        transpose_values (bool): Whether the heads' outputs are transposed from (pixels, channels) to (channels,
            pixels). The code of the released AA-ResNet-50 only reshapes them, so its checkpoint needs False. Defaults
            to True.

    Raises:
        ValueError: The heads do not divide the channels, ``kernel_size`` is even, ``pool`` does not exist, or no
            channel is left for the convolution.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        key_channels: int,
        value_channels: int,
        size: IntPair,
        heads: int = 8,
        stride: int = 1,
        dilation: int = 1,
        pool: str | None = None,
        transpose_values: bool = True,
    ) -> None:
        super().__init__()
        _check_heads(heads, key_channels=key_channels, value_channels=value_channels)
        if value_channels >= out_channels:
            raise ValueError(
                f'value_channels must be less than the {out_channels} out_channels, but is {value_channels}: a '
                'convolution makes the others'
            )
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd, but is {kernel_size}')
        if pool not in (None, 'attention', 'all'):
            raise ValueError(f"pool must be None, 'attention' or 'all', but is {pool!r}")
        self.key_channels, self.heads, self.stride = key_channels, heads, stride
        self.pool, self.transpose_values = pool, transpose_values
        # The names are those of the released checkpoint.
        padding = kernel_size // 2 * dilation
        self.conv_out = nn.Conv2d(in_channels, out_channels - value_channels, kernel_size, stride, padding, dilation)
        self.conv_kqv = nn.Conv2d(in_channels, 2 * key_channels + value_channels, 1, stride)
        self.attn_out = nn.Conv2d(value_channels, value_channels, 1)
        head = key_channels // heads
        self.key_rel_h, self.key_rel_w = (
            nn.Parameter(torch.randn(2 * pixels - 1, head) * head**-0.5) for pixels in pair('size', size, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer to ``x`` (N, in_channels, H, W)."""
        size = tuple(-(-pixels // self.stride) for pixels in x.shape[2:])
        pooled = x if self.pool is None else F.avg_pool2d(x, 3, 2, 1)
        convolved, attended = self.conv_out(pooled if self.pool == 'all' else x), self._attend(pooled)
        outputs = [
            out if out.shape[2:] == size else F.interpolate(out, size, mode='bilinear', align_corners=False)
            for out in (convolved, attended)
        ]
        return torch.cat(outputs, 1)

    def _attend(self, x: Tensor) -> Tensor:
        kqv = self.conv_kqv(x)
        size = height, width = kqv.shape[2:]
        parts = [self.key_channels, self.key_channels, kqv.shape[1] - 2 * self.key_channels]
        key, query, value = (part.unflatten(1, (self.heads, -1)) for part in kqv.split(parts, 1))
        query = query * query.shape[2] ** -0.5
        rows, columns = pairs_of_pixels(self.key_rel_h.t(), height), pairs_of_pixels(self.key_rel_w.t(), width)
        # The query is in row i and column j, the key in row k and column l.
        logits = torch.einsum('nhcij,cik->nhijk', query, rows).unsqueeze(5)
        logits = logits + torch.einsum('nhcij,cjl->nhijl', query, columns).unsqueeze(4)
        query, key, value = (t.flatten(3).transpose(2, 3) for t in (query, key, value))
        logits = logits.flatten(4).flatten(2, 3)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=logits.to(query.dtype), scale=1.0)
        if self.transpose_values:
            out = out.transpose(2, 3)
        return self.attn_out(out.reshape(out.shape[0], -1, *size))


class AxialAttention(nn.Module):
    """Position-sensitive self-attention along one axis of a map (Wang et al., 2020, eq. 4).

    The logit is ``q_o . k_p + q_o . r^q_(p-o) + k_p . r^k_(p-o)``. The softmax over the pixels p of the axis weights
    ``v_p + r^v_(p-o)``. All heads share the three tables, and :func:`resize_table` fits them to other lengths of the
    axis. Batch norm follows the projection, each of the three terms of the logits and both terms of the output.

    Args:
        in_channels (int): Channels of the input.
        channels (int): Channels of the output and of the values. Queries and keys have half as many.
        axis (str): 'height' or 'width'.
        size (int): Pixels of the axis for which the tables are made, ``2 * size - 1`` distances.
        heads (int): Heads. Defaults to 8.
        span (int, optional): Pixels of the axis in a window around each query, an odd number. Pixels outside the map
            are masked. Defaults to None: the whole axis.

    Raises:
        ValueError: ``axis`` does not exist, ``span`` is even, or ``channels`` is not a multiple of ``2 * heads``.

    Shape:
        (N, in_channels, H, W) to (N, channels, H, W).
    """

    def __init__(
        self, in_channels: int, channels: int, axis: str, size: int, heads: int = 8, span: int | None = None
    ) -> None:
        super().__init__()
        if axis not in AXES:
            raise ValueError(f'axis must be one of {AXES}, but is {axis!r}')
        if heads < 1 or channels % (2 * heads):
            raise ValueError(
                f'channels must be a multiple of {2 * heads}, so that each of the {heads} heads has an even number of '
                f'channels, but is {channels}'
            )
        if span is not None and (span < 1 or span % 2 == 0):
            raise ValueError(f'span must be an odd number of pixels, or None for the whole axis, but is {span!r}')
        self.heads, self.axis, self.span = heads, axis, span
        head = channels // heads
        self.parts = [head // 2, head // 2, head]
        # The names and the order of channels are those of the released checkpoint.
        self.qkv_transform = nn.Conv1d(in_channels, 2 * channels, 1, bias=False)
        self.bn_qkv = nn.BatchNorm1d(2 * channels)
        self.bn_similarity = nn.BatchNorm2d(3 * heads)
        self.bn_output = nn.BatchNorm1d(2 * channels)
        self.relative = nn.Parameter(torch.randn(2 * head, 2 * size - 1) * head**-0.5)
        nn.init.normal_(self.qkv_transform.weight, std=in_channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer to ``x`` (N, in_channels, H, W)."""
        x = x.transpose(2, 3) if self.axis == 'height' else x  # the axis is the last dimension
        size = x.shape[2:]
        qkv = self.bn_qkv(self.qkv_transform(x.flatten(2))).unflatten(2, size)
        query, key, value = qkv.unflatten(1, (self.heads, -1)).split(self.parts, 2)
        if self.span is None:
            outputs = self._attend_axis(query, key, value)
        else:
            outputs = self._attend_window(query, key, value, self.span)
        out = torch.stack(outputs, 3).flatten(1, 3)
        out = self.bn_output(out.flatten(2)).unflatten(2, size).unflatten(1, (-1, 2)).sum(2)
        return out.transpose(2, 3) if self.axis == 'height' else out

    def _logits(self, *terms: Tensor) -> Tensor:
        """Returns the sum of the three normalised terms, each (N, heads, p, lines, o)."""
        normed = self.bn_similarity(torch.cat(terms, 1).flatten(3)).unflatten(3, terms[0].shape[3:])
        return normed.unflatten(1, (3, -1)).sum(1)

    def _attend_axis(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        # Index i is the line; o is the query's pixel on it and p the key's.
        of_query, of_key, of_value = pairs_of_pixels(self.relative, query.shape[-1]).split(self.parts)
        weights = self._logits(
            torch.einsum('nhcio,nhcip->nhpio', query, key),
            torch.einsum('nhcio,cpo->nhpio', query, of_query),
            torch.einsum('nhcip,cop->nhpio', key, of_key),
        ).softmax(2)
        content = torch.einsum('nhpio,nhcip->nhcio', weights, value)
        return content, torch.einsum('nhpio,cpo->nhcio', weights, of_value)

    def _attend_window(self, query: Tensor, key: Tensor, value: Tensor, span: int) -> tuple[Tensor, Tensor]:
        # A line is a row of an image, and p is a tap of a window of one row.
        window, padding, size = (1, span), (0, span // 2), query.shape[-2:]
        table = resize_table(self.relative, span // 2 + 1)
        of_query, of_key, of_value = table.split(self.parts)
        products = window_product2d(query.flatten(1, 2), key.flatten(1, 2), window, self.heads)
        # Each tap's product is made at the key's pixel, and moved to the query's.
        at_keys = F.pad(torch.einsum('nhcip,ct->nhtip', key, of_key), (padding[1], padding[1]))
        taps = [tap.narrow(-1, t, size[1]) for t, tap in enumerate(at_keys.unbind(2))]
        logits = self._logits(
            products.squeeze(2), torch.einsum('nhcio,ct->nhtio', query, of_query.flip(1)), torch.stack(taps, 2)
        )
        mask = inside(size, window, (1, 1), padding, (1, 1), logits.device)[0]
        weights = logits.masked_fill(~mask, float('-inf')).softmax(2)
        content = involution2d(value.flatten(1, 2), weights.unsqueeze(2)).unflatten(1, (self.heads, -1))
        return content, torch.einsum('nhtio,ct->nhcio', weights, of_value.flip(1))
