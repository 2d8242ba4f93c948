"""Plans the launches of the CUDA kernels: what to compile, how to cut the work into blocks, and what to pass.

It needs neither a GPU nor CuPy.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import gcd, prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .. import Pair

if TYPE_CHECKING:
    import numpy

THREADS = 128  # of a block, at most
NARROW = {2: 14, 4: 8, 8: 8}  # pixels of a row, at most, whose ends are known when compiling, by the bytes of a pixel
FEW_THREADS = 64  # of a block, where others should load meanwhile
CHUNK = 16  # channels that a thread holds in registers: the paper's of a group
PART = CHUNK // 4  # channels of a narrow row that a thread takes
STAGED_STRIPS = {2: 32, 4: 24, 8: 24}  # of a block whose taps are staged at once, at most, by the bytes of a pixel
STRIPS = 16  # of a row of a block, at most
LANES = 8  # strips that shared memory serves at a time in float32: rows of a multiple of them meet in no bank
FEW_ROWS = 4  # in fewer rows a block would read its halo more often than its own pixels
BLOCKS = 2  # of a multiprocessor, at least, to have work while others wait for memory
WIDEST_ROW = 9  # taps of a window's row that registers hold at once; a longer one comes by parts of about PART_OF_ROW
PART_OF_ROW = 6
SIDE = 8  # rows and columns of the parts of what tensor cores multiply: pixels of a strip
WARP_ROWS = 4  # of a warp on tensor cores
LARGE = (1 << 31) - (1 << 16)  # elements, from which on indices are wide: a block looks a little beyond the last one
ALIGNMENT = 8  # elements, from which on any type can be read by 16 bytes

ELEMENTS = {
    torch.float16: 'Float16',
    torch.bfloat16: 'BFloat16',
    torch.float32: 'Plain<float>',
    torch.float64: 'Plain<double>',
}

# The fields of the source's struct Launch, all of them Index. xn to kj are the strides of the tensors in elements,
# vector_* are the elements of a tensor that can be read at a time.
ARGUMENTS = tuple(
    'groups group_channels in_h in_w out_h out_w pad_h pad_w '
    'xn xc xh xw yn yc yh yw kn kg ku kv ki kj vector_x vector_y vector_k kernel_extent '
    'chunk strips rows planes tiles_x tiles_y chunks units blocks '
    'tile_h tile_w pitch channel_pitch plane_pitch kernel_at kernel_pitch'.split()
)


# The kernels that there are, and the parts of their source; a function is compiled by adding the part of its name.
PARTS = {
    'tiled': ('common', 'tiled'),
    'narrow': ('common', 'narrow'),
    'pixels': ('common', 'channels_last', 'pixels'),
    'bands': ('common', 'channels_last', 'bands'),
}


@dataclass(frozen=True)
class Specialisation:
    """What a module is compiled of and for: all that the kernels know beforehand. Sizes are not among it."""

    dtype: torch.dtype
    kernel_size: Pair
    stride: Pair
    dilation: Pair
    wide: bool
    kernels: str = 'tiled'  # a key of ``PARTS``
    phase: int = 0  # of the horizontal padding, in vectors of memory and periods of the stride
    narrow: int = 0  # pixels of a row, where threads take whole rows

    def source(self, *functions: str) -> str:
        """Returns the CUDA source of some of 'forward', 'grad_input' and 'grad_kernel'."""
        parts = (Path(__file__).with_name(f'{part}.cu') for part in (*PARTS[self.kernels], *functions))
        return ''.join(f'#line 1 "{part.name}"\n{part.read_text()}' for part in parts)

    @cached_property
    def constants(self) -> dict[str, int]:
        """The source's macros but for types and names; its head says what they are."""
        (kh, kw), (sh, sw), (dh, dw), itemsize = self.kernel_size, self.stride, self.dilation, self.dtype.itemsize
        strip = SIDE if self.kernels == 'bands' else _strip(self.dtype)
        grad_strip = strip if strip % sw == 0 else sw  # whole periods of the stride
        taps = kw if kw <= WIDEST_ROW else _round_up(PART_OF_ROW, sw)
        pair = max(1, 4 // itemsize)
        vector = _vector(self.dtype)
        run_pitch = _round_up(kh * kw + vector - 1, vector)  # a run may start anywhere in its first vector
        return {
            'KH': kh,
            'KW': kw,
            'SH': sh,
            'SW': sw,
            'DH': dh,
            'DW': dw,
            'ROW_STEP': sh // gcd(sh, dh),
            'TAPS': taps,
            'THREADS': THREADS,
            'NARROW': self.narrow,
            'WARP_ROWS': WARP_ROWS if self.kernels == 'bands' else 0,
            'CHANNELS_LAST': int('channels_last' in PARTS[self.kernels]),
            'STRIP': strip,
            'GRAD_STRIP': grad_strip,
            'CHUNK': CHUNK,
            'GRAD_CHUNK': max(1, CHUNK * strip // max(strip, grad_strip)),
            'PAIR': pair,
            'SHIFT': -self.phase % strip if self.kernels == 'tiled' else 0,
            'GRAD_SHIFT': (self.phase // sw - (kw - 1) * dw // sw) % strip if self.kernels == 'tiled' else 0,
            'GRAD_PHASE': self.phase // sw % (grad_strip // sw),
            'RUN_PITCH': run_pitch,
            'ROW_PITCH': _round_up(kw + vector - 1, vector),
        }

    @property
    def options(self) -> tuple[str, ...]:
        """The compiler's options: the source's macros."""
        macros = {
            'ELEMENT': ELEMENTS[self.dtype],
            'INDEX': 'long long' if self.wide else 'int',
            'ARGUMENTS': ','.join(ARGUMENTS),
        }
        return ('-std=c++17', *(f'-D{name}={value}' for name, value in (macros | self.constants).items()))


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

    def constant(self, name: str) -> int:
        """Returns one of the source's, that of grad_input where it has its own."""
        constants = self.specialisation.constants
        return constants.get(f'GRAD_{name}' if self.function == 'grad_input' else name, constants[name])

    @property
    def height(self) -> int:
        between = self.function == 'grad_input' and self.specialisation.stride[0] > 1  # it starts between two rows of y
        return self._size(0, self.rows) + between

    @property
    def width(self) -> int:
        return self.constant('SHIFT') + self._size(1, self.strips * self.constant('STRIP'))

    def _size(self, axis: int, pixels: int) -> int:
        """Returns the pixels of the staged tensor that neighbouring pixels' windows reach."""
        specialisation = self.specialisation
        reach = (specialisation.kernel_size[axis] - 1) * specialisation.dilation[axis]
        stride = specialisation.stride[axis]
        if self.function != 'grad_input':
            return (pixels - 1) * stride + reach + 1
        return (pixels - 1 + reach) // stride + 1

    @property
    def pitches(self) -> Pair:
        """Elements from row to row, which are whole vectors, and from unit to unit."""
        height = self.channels * self.height
        return _find_pitches(self.width, height, self.strips, self.planes, self.steps, self.specialisation.dtype)

    @property
    def pitch(self) -> int:
        """Elements from row to row."""
        return self.pitches[0]

    @property
    def plane_pitch(self) -> int:
        """Elements from unit to unit."""
        return self.pitches[1]

    @property
    def steps(self) -> Pair:
        """Elements from strip to strip, and rows of the tile from row to row."""
        rows, columns = self.specialisation.stride
        if self.function == 'grad_input':
            return self.constant('STRIP') // columns, 1
        return self.constant('STRIP') * columns, rows

    @property
    def channel_pitch(self) -> int:
        """Elements from channel to channel."""
        return self.height * self.pitch

    @property
    def kernel_at(self) -> int:
        """Elements before what else is staged."""
        return _round_up(self.planes * self.plane_pitch, ALIGNMENT)

    @property
    def kernel_pitch(self) -> int:
        """Elements from row to row of the staged kernel, if it is."""
        return 0

    @property
    def shared(self) -> int:
        """Bytes of shared memory."""
        return self.kernel_at * self.specialisation.dtype.itemsize

    def take(self) -> '_Tile':
        """Returns as much of this work as a block has threads and registers for."""
        strips, channels = self._fill_lanes(self.strips, STRIPS), _share(self.channels, self.constant('CHUNK'))
        return replace(self, strips=strips, rows=_share(self.rows, THREADS // strips), channels=channels, planes=1)

    def shrink(self) -> '_Tile | None':
        """Returns a smaller tile, or none."""
        if self.rows > FEW_ROWS or self.rows > 1 and self.channels == 1:
            return replace(self, rows=self.rows - 1)
        if self.strips > 1 and self.channels == 1:
            return replace(self, strips=self.strips - 1)
        return replace(self, channels=_divide_up(self.channels, 2)) if self.channels > 1 else None

    def even_out(self, whole: '_Tile') -> '_Tile':
        """Returns the tile that cuts ``whole`` into as many, but equal parts."""
        strips = min(self.strips, self._fill_lanes(whole.strips, self.strips))
        channels = _share(whole.channels, self.channels)
        return replace(self, strips=strips, rows=_share(whole.rows, self.rows), channels=channels)

    @staticmethod
    def _fill_lanes(strips: int, at_most: int) -> int:
        """Returns the strips of a row: as many more than needed as rows that meet in no bank are worth."""
        strips = _share(strips, at_most)
        filled = _round_up(strips, LANES)
        return filled if filled - strips <= filled // 8 else strips

    @property
    def parts(self) -> int:
        """Threads of a strip."""
        return 1

    @property
    def most_strips(self) -> int:
        """Strips of all rows and planes of a block, at most."""
        return THREADS // self.parts


@dataclass(frozen=True)
class _Runs(_Tile):
    """A block of whole groups, where images are narrow. A strip is PART channels, or in grad_kernel a row of taps.

    Shared memory holds runs of memory, by the vectors that hold them: the images that are read, in grad_kernel those of
    ``x`` and then of ``y``; then the kernels.
    """

    @property
    def height(self) -> int:
        return self.rows

    @property
    def pitches(self) -> Pair:
        return self.specialisation.narrow, self.channels * self.rows * self.specialisation.narrow

    @property
    def kernel_at(self) -> int:
        return _round_up(self.planes * self.plane_pitch + ALIGNMENT - 1, ALIGNMENT)

    @property
    def shared(self) -> int:
        images = 2 if self.function == 'grad_kernel' else 1
        taps = self.planes * prod(self.specialisation.kernel_size) * self.channel_pitch
        elements = images * self.kernel_at + _round_up(taps + ALIGNMENT - 1, ALIGNMENT)
        return elements * self.specialisation.dtype.itemsize


@dataclass(frozen=True)
class _Pixels(_Tile):
    """A block of channels-last images: a strip has a thread for each vector of channels, or in grad_kernel row of taps.

    Shared memory holds pixels with their channels, in grad_kernel those of ``x`` and then of ``y``; then pixels with
    all their taps, in grad_input with a row of them, twice.
    """

    @property
    def parts(self) -> int:
        if self.function == 'grad_kernel':
            return self.specialisation.kernel_size[0]
        return self.channels // _vector(self.specialisation.dtype)

    @property
    def pitches(self) -> Pair:
        columns, rows = self.steps
        down = self.specialisation.dilation[0] if self.function == 'grad_kernel' else 0
        counts, vector = (self.parts, self.rows, self.strips), _vector(self.specialisation.dtype)
        pitch = _find_pixel_pitch(self.width * self.channels, counts, down, rows, columns * self.channels, vector)
        return pitch, self.height * pitch

    @property
    def most_strips(self) -> int:
        most = super().most_strips
        return min(most, STAGED_STRIPS[self.specialisation.dtype.itemsize]) if self.function == 'forward' else most

    def take(self) -> _Tile:
        channels = _round_up(_share(self.channels, CHUNK), _vector(self.specialisation.dtype))
        tile = replace(self, channels=channels, planes=1)
        rows = _share(self.rows, min(LANES, tile.most_strips))
        return replace(tile, strips=_share(self.strips, tile.most_strips // rows), rows=rows)

    def shrink(self) -> _Tile | None:
        vector = _vector(self.specialisation.dtype)
        if self.rows > FEW_ROWS or self.rows > 1 and self.channels == vector:
            return replace(self, rows=self.rows - 1)
        if self.strips > 1 and self.channels == vector:
            return replace(self, strips=self.strips - 1)
        return replace(self, channels=self.channels - vector) if self.channels > vector else None

    def even_out(self, whole: _Tile) -> _Tile:
        strips, rows = _share(whole.strips, self.strips), _share(whole.rows, self.rows)
        return replace(self, strips=strips, rows=rows)

    @property
    def channel_pitch(self) -> int:
        """Elements from pixel to pixel."""
        return self.channels

    @property
    def kernel_pitch(self) -> int:
        strip, vector = self.constant('STRIP'), _vector(self.specialisation.dtype)
        if self.function == 'grad_input':
            width, step = self.width * self.constant('ROW_PITCH'), self.steps[0] * self.constant('ROW_PITCH')
        else:
            step = strip * self.constant('RUN_PITCH') + vector
            width = self.strips * step
        return _find_pixel_pitch(width, (1, self.rows, self.strips), 0, 1, step, vector)

    @property
    def shared(self) -> int:
        pixels = self.planes * self.rows * self.strips * self.constant('STRIP')
        kernels = self.planes * self.rows * self.kernel_pitch * (1 + (self.function == 'grad_input'))
        images = pixels * self.channels if self.function == 'grad_kernel' else 0
        return (self.kernel_at + images + kernels) * self.specialisation.dtype.itemsize


@dataclass(frozen=True)
class _Bands(_Tile):
    """A block of channels-last images on tensor cores: each warp has WARP_ROWS rows of a strip of SIDE pixels.

    Shared memory holds pixels with their channels, in grad_kernel those of ``x`` and then of ``y``; then pixels with
    all their taps.
    """

    @property
    def parts(self) -> int:
        return 32 // WARP_ROWS

    @property
    def width(self) -> int:
        return (self.strips + 1) * SIDE  # a strip reaches two parts of an operand

    @property
    def pitches(self) -> Pair:
        pitch = self.width * self.channel_pitch
        return pitch, self.height * pitch

    def take(self) -> _Tile:
        rows = min(2, _divide_up(self.rows, WARP_ROWS)) * WARP_ROWS
        strips = _share(self.strips, self.most_strips // rows)
        return replace(self, strips=strips, rows=rows, channels=CHUNK, planes=1)

    def shrink(self) -> _Tile | None:
        if self.rows > WARP_ROWS:
            return replace(self, rows=self.rows - WARP_ROWS)
        return replace(self, strips=self.strips - 1) if self.strips > 1 else None

    def even_out(self, whole: _Tile) -> _Tile:
        return replace(self, strips=_share(whole.strips, self.strips))

    @property
    def channel_pitch(self) -> int:
        """Elements from pixel to pixel: an odd number of vectors, so that eight of them meet in no bank."""
        return self.channels + _vector(self.specialisation.dtype)

    @property
    def kernel_pitch(self) -> int:
        met = self.specialisation.kernel_size[1] - 1 if self.function == 'grad_input' else 0
        pixels, vector = self.strips * SIDE + met, _vector(self.specialisation.dtype)
        return pixels * self.constant('RUN_PITCH') + _divide_up(pixels, SIDE) * vector

    @property
    def shared(self) -> int:
        kernels = self.kernel_pitch * (self.height if self.function == 'grad_input' else self.rows)
        images = self.rows * self.strips * SIDE * self.channel_pitch if self.function == 'grad_kernel' else 0
        return (self.kernel_at + self.planes * (images + kernels)) * self.specialisation.dtype.itemsize


@dataclass(frozen=True)
class Device:
    """What the shape of a launch depends on. The default is right everywhere, if not the fastest."""

    shared: int = 48 << 10
    multiprocessors: int = 0
    max_grid: int = 1 << 20
    tensor_cores: bool = False  # for both types of 2 bytes


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

    @property
    def steps(self) -> tuple[int, ...]:
        """The strides that are ever taken: those of dimensions of one element may be anything, and are 0 here."""
        return tuple(step if size > 1 else 0 for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def extent(self) -> int:
        """Elements between the first and the last, both included."""
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def is_run(self) -> bool:
        """Whether the elements lie one after the other, in order, from a vector on."""
        sizes = [prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        runs = (step == size for length, step, size in zip(self.shape, self.stride, sizes, strict=True) if length > 1)
        return self.misalignment == 0 and all(runs)

    def is_dense(self, axis: int) -> bool:
        """Whether the elements along an axis are neighbours."""
        return self.stride[axis] == 1 or self.shape[axis] == 1

    def find_vector(self, axis: int, *sizes: int) -> int:
        """Returns the most elements along an axis that can be read at a time, from every multiple of them on, or 1."""
        steps = [step for i, step in enumerate(self.stride) if i != axis and self.shape[i] > 1]
        return max(
            size
            for size in (*sizes, 1)
            if size == 1
            or self.stride[axis] == 1
            and self.misalignment % (size * self.dtype.itemsize) == 0
            and all(count % size == 0 for count in (self.shape[axis], *steps))
        )


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: everything but the pointers."""

    specialisation: Specialisation
    function: str
    grid: int
    block: int
    shared: int
    arguments: 'numpy.ndarray'  # the source's struct Launch, which CuPy passes by value


@lru_cache(maxsize=1 << 12)  # of 2.7 KB each: 11 MB at most; a new one takes 0.3 ms
def plan_launch(
    function: str,
    x: Layout,
    k: Layout,
    y: Layout,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    device: Device = Device(),  # noqa: B008
) -> Launch | None:
    """Plans a launch, or none where shared memory cannot hold what one thread reads.

    It remembers its plans: a network asks for the same ones again and again.

    Args:
        function (str): 'forward', 'grad_input' or 'grad_kernel'.
        x (Layout): The tensor on the input's side, (N, C, H, W).
        k (Layout): The kernel or its gradient, (N, G, Kh, Kw, Ho, Wo).
        y (Layout): The tensor on the output's side, (N, C, Ho, Wo).
        stride (tuple): Vertical and horizontal stride.
        padding (tuple): Vertical and horizontal padding.
        dilation (tuple): Vertical and horizontal dilation.
        device (Device): The limits of the GPU.
    """
    specialisation = _specialise(function, x, k, y, stride, padding, dilation, device)
    tile = _gather(specialisation, function, x, k, device)
    if tile:
        whole = replace(tile, planes=x.shape[0] * k.shape[1])
    else:
        whole = _measure(specialisation, function, x, k, padding)
        tile = _fit(whole, device)
        if tile is None:
            return None
        tile = _spread(tile, whole, device)
    cut = _cut(whole, tile)
    return Launch(
        specialisation,
        function,
        grid=min(cut.blocks, device.max_grid),
        block=_round_up(tile.parts * tile.strips * tile.rows * tile.planes, 32),
        shared=tile.shared,
        arguments=_pack(whole, tile, cut, x, k, y, padding),
    )


def fit(function: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Copies what kernels would read slowly: they are fast where ``x`` and ``y`` are both channels-last or both not.

    The one that is written is never copied: an output is contiguous or channels-last.
    """
    lead = x if function == 'grad_input' else y
    is_last = not lead.is_contiguous() and lead.is_contiguous(memory_format=torch.channels_last)
    axis, memory_format = (1, torch.channels_last) if is_last else (3, torch.contiguous_format)
    x, y = (
        t if t.stride(axis) == 1 or t.shape[axis] == 1 else t.contiguous(memory_format=memory_format) for t in (x, y)
    )
    return x, y


def _specialise(
    function: str, x: Layout, k: Layout, y: Layout, stride: Pair, padding: Pair, dilation: Pair, device: Device
) -> Specialisation:
    specialisation = Specialisation(
        dtype=x.dtype,
        kernel_size=(k.shape[2], k.shape[3]),
        stride=stride,
        dilation=dilation,
        wide=max(x.extent, k.extent, y.extent) >= LARGE,
        phase=padding[1] % (_strip(x.dtype) * stride[1]),
    )
    if _are_pixels(x, k, y):
        last = replace(specialisation, kernels='pixels', phase=0)
        kinds = (replace(last, kernels='bands'), last) if device.tensor_cores and _are_bands(last, x, k) else (last,)
        fitting = (kind for kind in kinds if _fit(_measure(kind, function, x, k, padding), device))
        if found := next(fitting, None):
            return found
    narrow = replace(specialisation, kernels='narrow', narrow=x.shape[3])
    fits = stride == (1, 1) and x.shape == y.shape and x.shape[3] <= NARROW[x.dtype.itemsize]
    taken = fits and x.is_run and k.is_run and y.is_run
    return narrow if taken and _gather(narrow, function, x, k, device) else specialisation


def _are_pixels(x: Layout, k: Layout, y: Layout) -> bool:
    """Whether channels and taps are neighbours in memory, by whole vectors in every group."""
    vector = _vector(x.dtype)
    return (
        not (x.is_dense(3) and y.is_dense(3))
        and x.shape[1] // k.shape[1] % vector == 0
        and x.find_vector(1, vector) == y.find_vector(1, vector) == vector
        and (k.is_dense(3) and k.stride[2] == k.shape[3] and k.misalignment == 0)
        and max(k.shape[2:4]) <= WIDEST_ROW
    )


def _are_bands(last: Specialisation, x: Layout, k: Layout) -> bool:
    """Whether tensor cores can take channels-last images."""
    plain = last.stride == last.dilation == (1, 1) and last.kernel_size[1] < SIDE
    return plain and last.dtype.itemsize == 2 and x.shape[1] // k.shape[1] <= CHUNK


def _gather(specialisation: Specialisation, function: str, x: Layout, k: Layout, device: Device) -> _Tile | None:
    """Returns the work of a block where images are narrow, or none: also where one group of an image is too much."""
    if specialisation.kernels != 'narrow':
        return None
    channels, (kh, kw) = x.shape[1] // k.shape[1], specialisation.kernel_size
    if function == 'grad_kernel' and kw > WIDEST_ROW:
        return None  # registers hold the sums of a row of the window at a time
    strips = kh if function == 'grad_kernel' else _divide_up(channels, PART)
    tile = _Runs(specialisation, function, strips, x.shape[2], channels)
    if tile.strips * tile.rows > THREADS or tile.shared > device.shared:
        return None
    several = replace(tile, planes=max(1, FEW_THREADS // (tile.strips * tile.rows)))
    return several if several.shared <= device.shared else tile


def _measure(specialisation: Specialisation, function: str, x: Layout, k: Layout, padding: Pair) -> _Tile:
    """Returns the work of all blocks: all strips, rows and channels of a group, and all groups of all images."""
    (n, c, in_h, in_w), (groups, out_h, out_w) = x.shape, (k.shape[1], *k.shape[4:])
    stride = specialisation.stride[1]
    # The first strip of grad_input starts at a whole period of the stride, left of the image if need be.
    rows, columns = (in_h, padding[1] % stride + in_w) if function == 'grad_input' else (out_h, out_w)
    kind = {'bands': _Bands, 'pixels': _Pixels}.get(specialisation.kernels, _Tile)
    work = kind(specialisation, function, columns, rows, c // groups, n * groups)
    return replace(work, strips=_divide_up(columns, work.constant('STRIP')))


def _fit(whole: _Tile, device: Device) -> _Tile | None:
    """Returns the largest tile that threads, registers and shared memory allow, cut evenly, or none."""
    tile: _Tile | None = whole.take()
    while tile and tile.shared > device.shared:
        tile = tile.shrink()
    return tile.even_out(whole) if tile else None


@lru_cache(maxsize=1 << 12)
def _find_pitches(width: int, height: int, strips: int, planes: int, steps: Pair, dtype: torch.dtype) -> Pair:
    """Returns the pitches of rows and of units at which threads that read together meet in the fewest banks.

    They are little more than ``width`` and ``height`` such rows. The strips of threads are ``steps[0]`` elements apart,
    their rows ``steps[1]`` rows.
    """
    vector = _strip(dtype)
    lanes = 128 // (vector * dtype.itemsize)  # vectors that shared memory serves at a time
    width, counts = _round_up(width, vector), (strips, planes, THREADS)
    pads = range(0, vector * lanes, vector) if planes > 1 else (0,)
    pitches = ((row, height * row + pad) for row in range(width, width + 2 * vector + 1, vector) for pad in pads)
    return min(
        pitches,
        key=lambda found: _count_collisions(counts, (steps[0], found[1], steps[1] * found[0]), vector, lanes),
    )


@lru_cache(maxsize=1 << 12)
def _find_pixel_pitch(width: int, counts: tuple[int, ...], down: int, rows: int, columns: int, vector: int) -> int:
    """Returns the same for pixels with their channels, of a thread's parts, rows and strips.

    Parts are ``down`` rows apart, or a vector.
    """
    pitches = range(width, width + LANES * vector, vector)
    return min(
        pitches,
        key=lambda pitch: _count_collisions(counts, (down * pitch or vector, rows * pitch, columns), vector, LANES),
    )


def _count_collisions(counts: tuple[int, ...], steps: tuple[int, ...], vector: int, lanes: int) -> int:
    """Returns how many of the vectors that are read together meet in a bank, of threads that count so many steps."""
    addresses = set()  # who reads the same does not collide
    for lane in range(lanes):
        at = 0
        for count, step in zip(counts, steps, strict=True):
            lane, digit = divmod(lane, count)
            at += digit * step
        addresses.add(at)
    banks = [at // vector % lanes for at in addresses]
    return max(map(banks.count, banks))


def _spread(tile: _Tile, whole: _Tile, device: Device) -> _Tile:
    """Gives little work to more blocks, and puts small images into one block, while the device is busy."""
    while tile.rows > FEW_ROWS and _cut(whole, tile).blocks < BLOCKS * device.multiprocessors:
        tile = replace(tile, rows=_divide_up(tile.rows, 2))
    cut = _cut(whole, tile)
    if cut.tiles_x * cut.tiles_y > 1:
        return tile
    most = min(tile.most_strips // (tile.strips * tile.rows), cut.units // max(1, BLOCKS * device.multiprocessors))
    fuller = (replace(tile, planes=planes) for planes in range(most, 1, -1))
    return next((tile for tile in fuller if tile.shared <= device.shared), tile)


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


def _pack(whole: _Tile, tile: _Tile, cut: _Cut, x: Layout, k: Layout, y: Layout, padding: Pair) -> 'numpy.ndarray':
    import numpy

    constants = whole.specialisation.constants
    row_sizes: tuple[int, ...] = (constants['STRIP'], 2)
    y_sizes = row_sizes
    if whole.function == 'grad_input' and cut.tiles_x > 1:
        # The tile of y starts with a vector; the next one starts this many pixels later.
        step = tile.strips * tile.constant('STRIP') // whole.specialisation.stride[1]
        y_sizes = tuple(size for size in row_sizes if step % size == 0)
    values = {
        'groups': k.shape[1],
        'group_channels': whole.channels,
        **_named('in_h in_w out_h out_w pad_h pad_w', (*x.shape[2:], *k.shape[4:], *padding)),
        **_named('xn xc xh xw yn yc yh yw', x.steps + y.steps),
        'vector_x': x.find_vector(3, *row_sizes),
        'vector_y': y.find_vector(3, *y_sizes),
        **_named('kn kg ku kv ki kj', k.steps),
        'vector_k': k.find_vector(5, *row_sizes),
        'kernel_extent': k.extent,
        **cut._asdict(),
        'chunk': tile.channels,
        'tile_h': tile.height,
        'tile_w': tile.width,
        **{
            name: getattr(tile, name)
            for name in 'strips rows planes pitch channel_pitch plane_pitch kernel_at kernel_pitch'.split()
        },
    }
    index = numpy.dtype(numpy.int64 if whole.specialisation.wide else numpy.int32)
    # Bytes without fields: at every launch CuPy would describe the fields anew, which takes 0.1 ms.
    return numpy.array([values[name] for name in ARGUMENTS], index).view(f'V{len(ARGUMENTS) * index.itemsize}')


def _vector(dtype: torch.dtype) -> int:
    """Returns the elements of 16 bytes, by which memory is read and written where it allows."""
    return 16 // dtype.itemsize


def _strip(dtype: torch.dtype) -> int:
    """Returns the pixels of a thread, which are also the elements of a vector of a row."""
    return 2 if dtype.itemsize == 8 else 4


def _named(names: str, values: tuple[int, ...]) -> dict[str, int]:
    return dict(zip(names.split(), values, strict=True))


def _divide_up(a: int, b: int) -> int:
    return -(-a // b)


def _round_up(a: int, b: int) -> int:
    return _divide_up(a, b) * b


def _share(total: int, at_most: int) -> int:
    """Returns the size of the parts when ``total`` is cut into equal parts of ``at_most``."""
    return _divide_up(total, _divide_up(total, at_most))
