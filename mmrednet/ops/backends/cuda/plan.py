"""Plans the launches of the CUDA kernels: what to compile, how to cut the work into blocks, and what to pass.

It needs neither a GPU nor CuPy.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from math import gcd, prod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .. import Pair

if TYPE_CHECKING:
    import numpy

THREADS = 128  # of a block, at most
STRIPS = 8  # of a row of a block, at most: 128 bytes in float32, which a warp reads at once
FEW_ROWS = 4  # in fewer rows a block would read its halo more often than its own pixels
BLOCKS = 2  # of a multiprocessor, at least, to have work while others wait for memory
WIDEST_ROW = 9  # taps of a window's row that registers hold at once; a longer one comes by parts of about PART_OF_ROW
PART_OF_ROW = 6
ALIGNMENT = 8  # elements, from which on any type can be read by 16 bytes

ELEMENTS = {
    torch.float16: 'Float16',
    torch.bfloat16: 'BFloat16',
    torch.float32: 'Plain<float>',
    torch.float64: 'Plain<double>',
}

# The fields of the source's struct Launch, all of them Index. xn to fw are the strides of the tensors in elements,
# vector_* says whether a tensor can be read by vectors; those of k are 0 where it is generated, those of f elsewhere.
ARGUMENTS = tuple(
    'groups group_channels in_h in_w out_h out_w pad_h pad_w '
    'xn xc xh xw yn yc yh yw kn kg ku kv ki kj fn fc fh fw vector_x vector_y vector_k vector_f kernel_extent reduced '
    'chunk strips rows planes tiles_x tiles_y units blocks '
    'tile_h tile_w pitch channel_pitch kernel_at weights_at'.split()
)


@dataclass(frozen=True)
class Specialisation:
    """What a module is compiled for: all that the kernels know beforehand. Sizes are not among it."""

    dtype: torch.dtype
    kernel_size: Pair
    stride: Pair
    dilation: Pair
    channels_last: bool
    pixel_major: bool
    wide: bool
    fused: bool = False

    @property
    def strip(self) -> int:
        """Output pixels of a thread: 16 bytes, or 8 in half precision."""
        return 2 if self.dtype == torch.float64 else 4

    @property
    def grad_strip(self) -> int:
        """Input pixels of a thread of grad_input: whole periods of the stride."""
        return self.strip if self.strip % self.stride[1] == 0 else self.stride[1]

    @property
    def chunk(self) -> int:
        """Channels that a thread holds in registers: the paper's 16 channels of a group."""
        return 16

    @property
    def grad_chunk(self) -> int:
        """Channels that a thread of grad_input holds in registers."""
        return max(1, self.chunk * self.strip // max(self.strip, self.grad_strip))

    @property
    def taps(self) -> int:
        """Taps of a window's row that a thread holds in registers at a time: whole periods of the stride, or all."""
        width, stride = self.kernel_size[1], self.stride[1]
        return width if width <= WIDEST_ROW else _divide_up(PART_OF_ROW, stride) * stride

    @property
    def row_step(self) -> int:
        """Distance of the rows of the window that meet the same row of the input."""
        return self.stride[0] // gcd(self.stride[0], self.dilation[0])

    @property
    def vector(self) -> int:
        """Elements read at a time where the layout allows: 16 bytes of channels, or a strip of pixels."""
        return 16 // self.dtype.itemsize if self.channels_last else self.strip

    @property
    def pair(self) -> int:
        """Elements in which the taps of a pixel are copied: 4 bytes at least."""
        return max(1, 4 // self.dtype.itemsize)

    @property
    def run_pitch(self) -> int:
        """Elements from pixel to pixel of staged taps; pairs keep their place, so half a one may lie at either end."""
        run = prod(self.kernel_size)
        return run if self.pair == 1 else run // 2 * 2 + 2

    @property
    def strip_pitch(self) -> int:
        """Elements from strip to strip of staged taps: an odd number of words, so that a warp meets in no bank."""
        return self.strip * self.run_pitch + self.pair

    @property
    def weight_vector(self) -> int:
        """Staged weights in 16 bytes, in the type that they are summed in."""
        return 16 // max(4, self.dtype.itemsize)

    @property
    def taps_pitch(self) -> int:
        """Staged weights of the taps that a thread holds at a time: whole vectors."""
        return _round_up(self.taps, self.weight_vector)

    @property
    def row_pitch(self) -> int:
        """Staged weights of a row of the window."""
        return _divide_up(self.kernel_size[1], self.taps) * self.taps_pitch

    @property
    def weights_pitch(self) -> int:
        """Staged weights of a channel of the features."""
        return self.kernel_size[0] * self.row_pitch

    @cached_property
    def staged(self) -> bool:
        """Whether shared memory can hold the window of one strip of pixels."""
        return all(_Tile(self, f, 1, 1, 1).shared <= Device().shared for f in ('forward', 'grad_input'))

    @property
    def options(self) -> tuple[str, ...]:
        """The compiler's options: the properties above are the source's macros."""
        macros = {
            'ELEMENT': ELEMENTS[self.dtype],
            'INDEX': 'long long' if self.wide else 'int',
            'ARGUMENTS': ','.join(ARGUMENTS),
            'FUSED': int(self.fused),
            'CHANNELS_LAST': int(self.channels_last),
            'PIXEL_MAJOR': int(self.pixel_major and self.staged),
            'THREADS': THREADS,
        }
        for name, (vertical, horizontal) in zip('KSD', (self.kernel_size, self.stride, self.dilation), strict=True):
            macros |= {f'{name}H': vertical, f'{name}W': horizontal}
        names = 'staged strip grad_strip chunk grad_chunk taps row_step vector pair run_pitch strip_pitch'
        names += ' weight_vector taps_pitch row_pitch weights_pitch'
        macros |= {name.upper(): int(getattr(self, name)) for name in names.split()}
        return ('-std=c++17', *(f'-D{name}={value}' for name, value in macros.items()))


@dataclass(frozen=True)
class _Tile:
    """The work of a block, or of all of them: strips of a row, rows, channels of a group, and groups of images.

    Shared memory holds the part of the tensor under them and the window around it.
    """

    specialisation: Specialisation
    function: str
    strips: int
    rows: int
    channels: int
    planes: int = 1
    reduced: int = 0  # channels of the features that a fused kernel stages

    @property
    def strip(self) -> int:
        return self.specialisation.grad_strip if self.function == 'grad_input' else self.specialisation.strip

    @property
    def most_channels(self) -> int:
        return self.specialisation.grad_chunk if self.function == 'grad_input' else self.specialisation.chunk

    @property
    def height(self) -> int:
        reach, stride = self._reach(0)
        if self.function == 'grad_input':
            return (self.rows - 1 + reach) // stride + 2
        return (self.rows - 1) * stride + reach + 1

    @property
    def width(self) -> int:
        reach, stride = self._reach(1)
        if self.function == 'grad_input':
            return (self.strips * self.strip - 1) // stride + reach // stride + 1
        return (self.strips * self.strip - 1) * stride + reach + 1

    @property
    def pitch(self) -> int:
        """Elements from row to row: whole vectors, as the last strip reads them."""
        return _round_up(self.width, self.specialisation.strip)

    @property
    def channel_pitch(self) -> int:
        """Elements from channel to channel."""
        return self.height * self.pitch

    @property
    def kernel_at(self) -> int:
        """Elements before the staged kernel, or before the features that make it."""
        return _round_up(self.planes * self.channels * self.channel_pitch, ALIGNMENT)

    @property
    def weights_at(self) -> int:
        """Elements before the staged weights of a fused kernel, which follow its features."""
        features = self.reduced * self.rows * self.strips * self.strip
        return _round_up(self.kernel_at + self.planes * features, ALIGNMENT)

    @property
    def shared(self) -> int:
        """Bytes of shared memory: the tile, then what the kernel is read from, if that is staged.

        That is, of a fused kernel, features and weights, else rows of taps or whole windows.
        """
        specialisation = self.specialisation
        itemsize = specialisation.dtype.itemsize
        if self.function == 'fused':
            weights = self.planes * self.reduced * specialisation.weights_pitch
            return self.weights_at * itemsize + weights * max(4, itemsize)
        taps = 0
        if specialisation.pixel_major and self.function == 'grad_input':
            taps = self.planes * self.rows * self.width * specialisation.kernel_size[1]
        elif specialisation.pixel_major:
            taps = self.planes * self.rows * self.strips * specialisation.strip_pitch
        return (self.kernel_at + taps) * itemsize

    def _reach(self, axis: int) -> Pair:
        """Returns how far the window reaches from its first tap to its last, and the stride."""
        specialisation = self.specialisation
        return (specialisation.kernel_size[axis] - 1) * specialisation.dilation[axis], specialisation.stride[axis]


@dataclass(frozen=True)
class Device:
    """What the shape of a launch depends on. The default is right everywhere, if not the fastest."""

    shared: int = 48 << 10
    multiprocessors: int = 0
    max_grid: int = 1 << 20


class Layout(NamedTuple):
    """All that a launch depends on of a tensor: where it lies, not what it holds."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    misalignment: int

    @classmethod
    def of(cls, tensor: Tensor) -> 'Layout':
        """Returns the layout of a tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.data_ptr() % 16)

    @classmethod
    def nowhere(cls, shape: tuple[int, ...], dtype: torch.dtype) -> 'Layout':
        """Returns the layout of a tensor that is never written to memory."""
        return cls(shape, (0,) * len(shape), dtype, 0)

    @property
    def extent(self) -> int:
        """Elements between the first and the last, both included."""
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    def is_dense(self, axis: int) -> bool:
        """Whether the elements along an axis are neighbours."""
        return self.stride[axis] == 1 or self.shape[axis] == 1

    def has_vectors(self, axis: int, size: int) -> bool:
        """Whether the elements along an axis can be read ``size`` at a time, from every multiple of ``size`` on."""
        steps = [step for i, step in enumerate(self.stride) if i != axis and self.shape[i] > 1]
        aligned = self.misalignment % (size * self.dtype.itemsize) == 0
        return aligned and self.stride[axis] == 1 and self.shape[axis] % size == 0 and all(s % size == 0 for s in steps)


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: everything but the pointers."""

    specialisation: Specialisation
    function: str
    grid: int
    block: int
    shared: int
    chunks: int  # of a group's channels, each a block's
    arguments: 'numpy.ndarray'  # the source's struct Launch, with ``ARGUMENTS`` as its fields


@lru_cache(maxsize=1 << 12)
def plan_launch(
    function: str,
    x: Layout,
    k: Layout,
    y: Layout,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    device: Device = Device(),  # noqa: B008
    features: Layout | None = None,
) -> Launch | None:
    """Plans a launch, or none where shared memory cannot hold what a fused one needs.

    It remembers its plans: a network asks for the same ones again and again.

    Args:
        function (str): 'forward', 'grad_input', 'grad_kernel' or 'fused'.
        x (Layout): The tensor on the input's side, (N, C, H, W).
        k (Layout): The kernel or its gradient, (N, G, Kh, Kw, Ho, Wo). Where it is generated, the shape counts.
        y (Layout): The tensor on the output's side, (N, C, Ho, Wo), channels-last where ``x`` is.
        stride (tuple): Vertical and horizontal stride.
        padding (tuple): Vertical and horizontal padding.
        dilation (tuple): Vertical and horizontal dilation.
        device (Device): The limits of the GPU.
        features (Layout, optional): What 'fused' generates the kernel from, (N, R, Ho, Wo), R > 0.
    """
    specialisation = _specialise(x, k, y, stride, dilation, features)
    whole = _measure(specialisation, function, x, k, padding, features)
    tile = _fit(whole, device)
    if tile is None:
        return None
    tile = _spread(tile, whole, device)
    cut = _cut(whole, tile)
    return Launch(
        specialisation,
        function,
        grid=min(cut.blocks, device.max_grid),
        block=_round_up(tile.strips * tile.rows * tile.planes, 32),
        shared=tile.shared if specialisation.staged else 0,
        chunks=cut.chunks,
        arguments=_pack(whole, tile, cut, x, k, y, padding, features),
    )


def fusing_pays(
    reduced: int, chunks: int, dtype: torch.dtype, bandwidth: float = 3.35e12, multiply_adds: float = 16.5e12
) -> bool:
    """Estimates whether the fused kernel is faster than the convolution and involution; no GPU has measured it.

    For each of the K * K * G values of a pixel's kernel, fusing saves the time in which memory writes and reads the
    value, and costs the time of R multiply-adds, once for every chunk of the group's channels. The convolution's own
    multiply-adds count as free: they run on tensor cores, or while memory is busy. K, G and the image size cancel.

    Args:
        reduced (int): R, the channels of the features.
        chunks (int): Parts that a group's channels are cut into; each generates the kernel anew.
        dtype (torch.dtype): That of the tensors.
        bandwidth (float): Of the memory, in bytes/s. Defaults to an H100's.
        multiply_adds (float): A second, without tensor cores. Defaults to half an H100's peak in float32, as reading
            the operands and threads beyond the image's border take their share. float64 has half of that.
    """
    saved = 2 * dtype.itemsize / bandwidth
    spent = reduced * chunks / (multiply_adds / 2 if dtype == torch.float64 else multiply_adds)
    return 0 < spent < saved


def fit(function: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Copies what the kernels cannot read in place: ``x`` and ``y`` must be both channels-last or both not.

    The one that is written is never copied: an output is contiguous or channels-last.
    """
    lead = x if function == 'grad_input' else y
    is_last = not lead.is_contiguous() and lead.is_contiguous(memory_format=torch.channels_last)
    axis, memory_format = (1, torch.channels_last) if is_last else (3, torch.contiguous_format)
    return tuple(
        t if t.stride(axis) == 1 or t.shape[axis] == 1 else t.contiguous(memory_format=memory_format) for t in (x, y)
    )


def _specialise(
    x: Layout, k: Layout, y: Layout, stride: Pair, dilation: Pair, features: Layout | None
) -> Specialisation:
    taps_are_a_run = not k.is_dense(5) and k.is_dense(3) and k.stride[2] == k.shape[3]
    return Specialisation(
        dtype=x.dtype,
        kernel_size=k.shape[2:4],
        stride=stride,
        dilation=dilation,
        channels_last=not (x.is_dense(3) and y.is_dense(3)),
        pixel_major=features is None and taps_are_a_run and k.misalignment % 4 == 0,
        wide=max(x.extent, (features or k).extent, y.extent) >= 1 << 31,
        fused=features is not None,
    )


def _measure(
    specialisation: Specialisation, function: str, x: Layout, k: Layout, padding: Pair, features: Layout | None
) -> _Tile:
    """Returns the work of all blocks: all strips, rows and channels of a group, and all groups of all images."""
    (n, c, in_h, in_w), (groups, out_h, out_w) = x.shape, (k.shape[1], *k.shape[4:])
    stride = specialisation.stride[1]
    # The first strip of grad_input starts at a whole period of the stride, left of the image if need be.
    rows, columns = (in_h, padding[1] % stride + in_w) if function == 'grad_input' else (out_h, out_w)
    reduced = features.shape[1] if features else 0
    work = _Tile(specialisation, function, columns, rows, c // groups, n * groups, reduced)
    return replace(work, strips=_divide_up(columns, work.strip))


def _fit(whole: _Tile, device: Device) -> _Tile | None:
    """Returns the largest tile that threads, registers and shared memory allow, cut evenly, or none."""
    strips = _share(whole.strips, STRIPS)
    rows, channels = _share(whole.rows, THREADS // strips), _share(whole.channels, whole.most_channels)
    tile = replace(whole, strips=strips, rows=rows, channels=channels, planes=1)
    if not whole.specialisation.staged:
        return None if whole.function == 'fused' else tile
    while tile.shared > device.shared:
        tile = _shrink(tile)
        if tile is None:
            return None
    return replace(
        tile,
        strips=_share(whole.strips, tile.strips),
        rows=_share(whole.rows, tile.rows),
        channels=_share(whole.channels, tile.channels),
    )


def _shrink(tile: _Tile) -> _Tile | None:
    """Returns a smaller tile, or none."""
    if tile.rows > FEW_ROWS or tile.rows > 1 and tile.channels == 1:
        return replace(tile, rows=tile.rows - 1)
    # A fused kernel is generated once for every chunk of channels: it rather takes fewer strips.
    if tile.strips > 1 and (tile.channels == 1 or tile.function == 'fused'):
        return replace(tile, strips=tile.strips - 1)
    return replace(tile, channels=_divide_up(tile.channels, 2)) if tile.channels > 1 else None


def _spread(tile: _Tile, whole: _Tile, device: Device) -> _Tile:
    """Gives little work to more blocks, and puts small images into one block, while the device is busy."""
    while tile.rows > FEW_ROWS and _cut(whole, tile).blocks < BLOCKS * device.multiprocessors:
        tile = replace(tile, rows=_divide_up(tile.rows, 2))
    cut = _cut(whole, tile)
    if cut.tiles_x * cut.tiles_y > 1:
        return tile
    fitting = device.shared // tile.shared if whole.specialisation.staged else THREADS
    enough = cut.units // max(1, BLOCKS * device.multiprocessors)
    return replace(tile, planes=max(1, min(enough, fitting, THREADS // (tile.strips * tile.rows))))


class _Cut(NamedTuple):
    """How many tiles, and how many blocks for all of them; a unit is a chunk of the channels of one group and image."""

    tiles_x: int
    tiles_y: int
    chunks: int
    units: int
    blocks: int


def _cut(whole: _Tile, tile: _Tile) -> _Cut:
    tiles_x, tiles_y = _divide_up(whole.strips, tile.strips), _divide_up(whole.rows, tile.rows)
    chunks = 1 if whole.function == 'grad_kernel' else _divide_up(whole.channels, tile.channels)
    units = whole.planes * chunks
    return _Cut(tiles_x, tiles_y, chunks, units, tiles_x * tiles_y * _divide_up(units, tile.planes))


@cache
def arguments_type(wide: bool) -> 'numpy.dtype':
    """Returns the source's struct Launch as NumPy knows it; CuPy passes an array of one of them by value."""
    import numpy

    return numpy.dtype([(name, numpy.int64 if wide else numpy.int32) for name in ARGUMENTS])


def _pack(
    whole: _Tile,
    tile: _Tile,
    cut: _Cut,
    x: Layout,
    k: Layout,
    y: Layout,
    padding: Pair,
    features: Layout | None,
) -> 'numpy.ndarray':
    import numpy

    specialisation = whole.specialisation
    axis, size = 1 if specialisation.channels_last else 3, specialisation.vector
    # Channels are read by vectors where no vector belongs to two groups or chunks.
    whole_vectors = axis == 3 or whole.channels % size == tile.channels % size == 0
    values = {
        'groups': k.shape[1],
        'group_channels': whole.channels,
        'in_h': x.shape[2],
        'in_w': x.shape[3],
        'out_h': k.shape[4],
        'out_w': k.shape[5],
        'pad_h': padding[0],
        'pad_w': padding[1],
        **_strides('x', 'nchw', x),
        **_strides('y', 'nchw', y),
        'vector_x': whole_vectors and x.has_vectors(axis, size),
        'vector_y': whole_vectors and y.has_vectors(axis, size),
        'reduced': whole.reduced,
        'chunk': tile.channels,
        **{name: getattr(tile, name) for name in ('strips', 'rows', 'planes', 'pitch', 'channel_pitch', 'kernel_at')},
        **{name: getattr(cut, name) for name in ('tiles_x', 'tiles_y', 'units', 'blocks')},
        'tile_h': tile.height,
        'tile_w': tile.width,
    }
    if features:
        values |= _strides('f', 'nchw', features)
        values |= {'vector_f': features.has_vectors(axis, size), 'weights_at': tile.weights_at}
    else:
        values |= _strides('k', 'nguvij', k)
        values |= {'vector_k': k.has_vectors(5, specialisation.strip), 'kernel_extent': k.extent}
    arguments = numpy.zeros((), arguments_type(specialisation.wide))
    for name, value in values.items():
        arguments[name] = value
    return arguments


def _strides(name: str, axes: str, layout: Layout) -> dict[str, int]:
    return {name + axis: step for axis, step in zip(axes, layout.stride, strict=True)}


def _divide_up(a: int, b: int) -> int:
    return -(-a // b)


def _round_up(a: int, b: int) -> int:
    return _divide_up(a, b) * b


def _share(total: int, at_most: int) -> int:
    """Returns the size of the parts when ``total`` is cut into equal parts of ``at_most``."""
    return _divide_up(total, _divide_up(total, at_most))
