"""Local attention as involution (section 4.2): kernels from queries and keys. It needs torch alone."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..ops import involution2d, window_product2d
from ..ops.arguments import IntPair, check_groups, pair, same_padding, to_pairs
from ..ops.backends import Pair, check_backend
from ..ops.borders import check_border, inside, reflect


class Projection(nn.Conv2d):
    """A 1x1 convolution without bias. Its initial weights have the standard deviation ``1 / sqrt(in_channels)``.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)

    def reset_parameters(self) -> None:
        """Sets the initial weights."""
        nn.init.normal_(self.weight, std=self.in_channels**-0.5)

    init_weights = reset_parameters  # a backbone calls this after it has initialised its convolutions


class WindowKernelGeneration(nn.Module):
    """The base class of kernel generation functions that compare a pixel with the pixels in its window.

    Args:
        channels (int): Channels C of the features, (N, C, H, W).
        groups (int): Groups (heads) G.
        kernel_size (tuple[int, int]): Kh and Kw.
        stride (tuple[int, int]): Vertical and horizontal stride in pixels.
        padding (tuple[int, int]): Vertical and horizontal padding in pixels.
        dilation (tuple[int, int]): Vertical and horizontal distance between taps in pixels.
        border (str): How pixels outside the image are treated. 'zeros': they are zero and compared like other pixels.
            'mask': the softmax leaves them out. 'reflect': the image is reflected. Defaults to 'zeros'.
        backend (str, optional): As in :func:`mmrednet.ops.involution2d`. Defaults to None.

    Raises:
        ValueError: ``border`` or ``backend`` does not exist, or a window has no pixel in its middle.
    """

    needs_all_pixels = True

    def __init__(
        self,
        channels: int,
        groups: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        *,
        border: str = 'zeros',
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_border(border)
        check_backend(backend)
        self.channels, self.groups, self.kernel_size = channels, groups, kernel_size
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.border, self.backend = border, backend
        # The distance from the first pixel to the middle of the first window.
        self._middle = tuple(
            middle - pad for middle, pad in zip(same_padding(kernel_size, dilation), padding, strict=True)
        )

    def at_outputs(self, x: Tensor) -> Tensor:
        """Returns the pixels of (N, C, H, W) that are in the middle of a window, (N, C, Ho, Wo)."""
        (top, left), (height, width) = self._middle, x.shape[2:]
        x = x[:, :, top : height - top, left : width - left] if top or left else x
        return x if self.stride == (1, 1) else x[:, :, :: self.stride[0], :: self.stride[1]]

    def products(self, query: Tensor, key: Tensor) -> Tensor:
        """Returns the products of queries (N, C, Ho, Wo) with keys (N, C, H, W): (N, G, Kh, Kw, Ho, Wo)."""
        padding = self.padding
        if self.border == 'reflect':
            key, padding = reflect(key, padding), (0, 0)
        return window_product2d(
            query, key, self.kernel_size, self.groups, self.stride, padding, self.dilation, backend=self.backend
        )

    def softmax(self, logits: Tensor, size: torch.Size) -> Tensor:
        """Returns the kernels, (N, G * Kh * Kw, Ho, Wo), for an image of this height and width. Each sums to one."""
        if self.border == 'mask':
            taps = inside(size, self.kernel_size, self.stride, self.padding, self.dilation, logits.device)
            logits = logits.masked_fill(~taps, float('-inf'))
        return logits.flatten(2, 3).softmax(2).flatten(1, 2)


class SelfAttentionKernelGeneration(WindowKernelGeneration):
    """Stand-alone self-attention: ``softmax(q . k + q . r)`` over the window (Ramachandran et al., 2019, eq. 3).

    As in that paper, the products are not scaled by ``1 / sqrt(d)``. All heads share the relative position embeddings
    ``r``. The first half of an embedding depends on the row of the tap, the second half on its column.

    Args:
        *args: The arguments of :class:`WindowKernelGeneration`. Groups are heads.
        content (bool): Whether ``q . k`` is part of the sum. Defaults to True.
        position (bool): Whether ``q . r`` is part of the sum. Defaults to True.
        **kwargs: The same arguments by name.

    Raises:
        ValueError: The heads do not divide the channels; with ``position``, a head has an odd number of channels; or
            ``content`` and ``position`` are both False.
    """

    def __init__(self, *args, content: bool = True, position: bool = True, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        channels, groups = self.channels, self.groups
        check_groups(groups, channels)
        if not (content or position):
            raise ValueError('content or position must be True, but both are False: set one of them')
        head = channels // groups
        if position and head % 2:
            raise ValueError(
                f'position=True needs an even number of channels for each head, but {channels} channels and {groups} '
                f'heads give {head}: change the heads, or set position=False'
            )
        self.query = Projection(channels, channels)
        self.key: nn.Module | None = None
        self.rows: Tensor | None = None
        self.columns: Tensor | None = None
        if content:
            self.key = Projection(channels, channels)
        if position:
            self.rows, self.columns = (
                nn.Parameter(torch.randn(head // 2, taps) * head**-0.5) for taps in self.kernel_size
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (N, C, H, W) to kernels (N, G * Kh * Kw, Ho, Wo)."""
        query = self.query(self.at_outputs(x))
        terms = [] if self.key is None else [self.products(query, self.key(x))]
        if self.rows is not None and self.columns is not None:
            # `einsum` would store the taps of a pixel together. Then the sum with the products would be slow.
            row, column = query.unflatten(1, (self.groups, 2, -1)).flatten(4).unbind(2)
            terms.append((self.rows.T @ row).unflatten(3, query.shape[2:]).unsqueeze(3))
            terms.append((self.columns.T @ column).unflatten(3, query.shape[2:]).unsqueeze(2))
        return self.softmax(sum(terms[1:], start=terms[0]), x.shape[2:])


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    'product': lambda q, k: q * k,
    'key': lambda q, k: k,
    'difference': lambda q, k: -(q - k).abs(),
    'relative difference': lambda q, k: -(q - k).abs() / (q.abs() + k.abs() + 1),
    'relative square': lambda q, k: -((q - k) ** 2) / ((q * k).abs() + 1),
    'square': lambda q, k: -((q - k) ** 2),
}


class LocalRelationKernelGeneration(WindowKernelGeneration):
    """Local relation: ``softmax(similarity(q, k) + prior)`` over the window (Hu et al., 2019, eqs. 3 and 5).

    Query and key have one number for each group. The geometry prior maps the position of a tap, relative to the middle
    of the window, to one number for each group: two 1x1 convolutions with a ReLU between them. A position is the number
    of taps to the right and the number of taps upwards.

    Args:
        *args: The arguments of :class:`WindowKernelGeneration`.
        similarity (str): A key of ``SIMILARITIES``, the functions of the authors' operator. Defaults to 'difference'.
        border (str): As in :class:`WindowKernelGeneration`. Defaults to 'mask', as in the authors' operator.
        **kwargs: The same arguments by name.

    Raises:
        ValueError: ``similarity`` is not a key of ``SIMILARITIES``.
    """

    positions: Tensor

    def __init__(self, *args, similarity: str = 'difference', border: str = 'mask', **kwargs) -> None:
        super().__init__(*args, border=border, **kwargs)
        if similarity not in SIMILARITIES:
            raise ValueError(f'similarity must be one of {tuple(SIMILARITIES)}, but is {similarity!r}')
        self.similarity = similarity
        groups, hidden = self.groups, max(1, self.groups // 2)
        self.query, self.key = nn.Conv2d(self.channels, groups, 1), nn.Conv2d(self.channels, groups, 1)
        self.prior = nn.Sequential(nn.Conv2d(2, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, groups, 1))
        rows, columns = (torch.arange(k, dtype=torch.float) - (k - 1) / 2 for k in self.kernel_size)
        positions = torch.stack(torch.meshgrid(columns, -rows, indexing='xy'))
        self.register_buffer('positions', positions[None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (N, C, H, W) to kernels (N, G * Kh * Kw, Ho, Wo)."""
        query, key = self.query(self.at_outputs(x)), self.key(x)
        # The product of a query that is one and a key is the key.
        keys = self.products(torch.ones_like(query), key)
        similar = SIMILARITIES[self.similarity](query[:, :, None, None], keys)
        prior = self.prior(self.positions.to(query.dtype))
        return self.softmax(similar + prior[..., None, None], x.shape[2:])


class LocalAttention(nn.Module):
    """Local attention: involution of values, with the kernels of a kernel generation function.

    It differs from :class:`mmrednet.layers.Involution` in three points: values and output have projections, pixels
    outside the image may be masked or reflected, and groups may be interleaved.

    Args:
        channels (int): Channels of the values.
        kernel_size (int or pair): Height and width of the window. Defaults to 7.
        stride (int or pair): Stride in pixels. Defaults to 1.
        dilation (int or pair): Distance between the window's taps in pixels. Defaults to 1.
        groups (int): Groups of channels (heads) that share a kernel. Defaults to 8.
        kernel_generation (Callable): Makes the kernel generation function, a :class:`WindowKernelGeneration`. Defaults
            to :class:`SelfAttentionKernelGeneration`.
        in_channels (int, optional): Channels of the input. Defaults to None: ``channels``.
        value (nn.Module, optional): Maps the input to the values. Defaults to None: a 1x1 convolution without bias.
        output (nn.Module, optional): The module after the involution. Defaults to None: no module.
        border (str): The border of the kernel generation function: see :class:`WindowKernelGeneration`. With 'reflect'
            the values are reflected, too. With 'zeros' and 'mask' they are zero outside the image. Defaults to 'zeros'.
        interleaved (bool): Whether channel c belongs to group ``c mod groups``, as in SAN, instead of group
            ``c // (channels / groups)``. Defaults to False.
        backend (str, optional): As in :func:`mmrednet.ops.involution2d`. Defaults to None.

    Raises:
        ValueError: The groups do not divide the channels; or a size, ``border`` or ``backend`` is not valid.

    Shape:
        (N, in_channels, H, W) to (N, channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        channels: int,
        kernel_size: IntPair = 7,
        stride: IntPair = 1,
        dilation: IntPair = 1,
        groups: int = 8,
        *,
        kernel_generation: Callable[..., nn.Module] = SelfAttentionKernelGeneration,
        in_channels: int | None = None,
        value: nn.Module | None = None,
        output: nn.Module | None = None,
        border: str = 'zeros',
        interleaved: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_groups(groups, channels)
        check_border(border)
        check_backend(backend)
        in_channels = channels if in_channels is None else in_channels
        self.kernel_size = pair('kernel_size', kernel_size, 1)
        self.stride, self.padding, self.dilation = to_pairs(self.kernel_size, stride, None, dilation)
        self.groups, self.border, self.interleaved, self.backend = groups, border, interleaved, backend
        self.kernel_generation = kernel_generation(
            channels=in_channels,
            groups=groups,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            border=border,
            backend=backend,
        )
        self.value = Projection(in_channels, channels) if value is None else value
        self.output = nn.Identity() if output is None else output

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer to ``x`` (N, in_channels, H, W)."""
        kernel = self.kernel_generation(x).unflatten(1, (self.groups, *self.kernel_size))
        geometry = self.stride, self.padding, self.dilation
        out = aggregate(
            self.value(x), kernel, *geometry, border=self.border, interleaved=self.interleaved, backend=self.backend
        )
        return self.output(out)


def aggregate(
    value: Tensor,
    kernel: Tensor,
    stride: IntPair,
    padding: Pair,
    dilation: IntPair,
    *,
    border: str = 'zeros',
    interleaved: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Applies kernels to values, as :func:`mmrednet.ops.involution2d` does, with the borders and groups of attention.

    Args:
        value (Tensor): Values, (N, C, H, W).
        kernel (Tensor): Kernels, (N, G, Kh, Kw, Ho, Wo).
        stride (int or pair): Stride in pixels.
        padding (tuple[int, int]): Vertical and horizontal padding in pixels.
        dilation (int or pair): Distance between taps in pixels.
        border (str): See :class:`LocalAttention`. Defaults to 'zeros'.
        interleaved (bool): See :class:`LocalAttention`. Defaults to False.
        backend (str, optional): As in :func:`mmrednet.ops.involution2d`. Defaults to None.

    Returns:
        Tensor: (N, C, Ho, Wo).
    """
    groups = kernel.shape[1]
    if border == 'reflect':
        value, padding = reflect(value, padding), (0, 0)
    if interleaved:  # the operator's groups are neighbouring channels
        value = value.unflatten(1, (-1, groups)).transpose(1, 2).flatten(1, 2)
    out = involution2d(value, kernel, stride, padding, dilation, backend=backend)
    return out.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2) if interleaved else out
