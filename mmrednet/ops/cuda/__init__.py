"""The operator in CUDA, compiled by CuPy at first use: one module per specialisation, whatever the image sizes."""

from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from math import gcd
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name('involution2d.cu')
THREADS = 128  # of a block, at most

Pair = tuple[int, int]
_DTYPES = {
    torch.float16: 'FLOAT16',
    torch.bfloat16: 'BFLOAT16',
    torch.float32: 'FLOAT32',
    torch.float64: 'FLOAT64',
}


@cache
def load() -> None:
    """Makes the backend ready.

    Raises:
        RuntimeError: CuPy or its compiler cannot be used. The message says what to install.
    """
    if torch.version.cuda is None:
        raise RuntimeError('the CUDA kernels need a PyTorch that is built for CUDA')
    major = torch.version.cuda.split('.')[0]
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().partition('\n')[0]
        raise RuntimeError(f'the CUDA kernels need CuPy ({reason}): pip install cupy-cuda{major}x') from error


def involution2d(out: Tensor, input: Tensor, kernel: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> None:
    """Writes eq. 4 to ``out`` (N, C, Ho, Wo)."""
    _run('forward', out, input, kernel, out, stride, padding, dilation)


def grad_input(
    grad_input: Tensor, grad_output: Tensor, kernel: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> None:
    """Writes the gradient for ``input`` to ``grad_input`` (N, C, H, W)."""
    _run('grad_input', grad_input, grad_input, kernel, grad_output, stride, padding, dilation)


def grad_kernel(
    grad_kernel: Tensor, grad_output: Tensor, input: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> None:
    """Writes the gradient for ``kernel`` to ``grad_kernel`` (N, G, Kh, Kw, Ho, Wo)."""
    _run('grad_kernel', grad_kernel, input, grad_kernel, grad_output, stride, padding, dilation)


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
    def channel_vector(self) -> int:
        """Channels in 16 bytes."""
        return 16 // self.dtype.itemsize

    @property
    def staged(self) -> bool:
        """Whether shared memory can hold the window of one strip of pixels."""
        return all(_Tile(self, f, 1, 1, 1).shared <= Device().shared for f in ('forward', 'grad_input'))

    @property
    def options(self) -> tuple[str, ...]:
        """The compiler's options."""
        macros = {
            _DTYPES[self.dtype]: 1,
            'KH': self.kernel_size[0],
            'KW': self.kernel_size[1],
            'SH': self.stride[0],
            'SW': self.stride[1],
            'DH': self.dilation[0],
            'DW': self.dilation[1],
            'ROW_STEP': self.stride[0] // gcd(self.stride[0], self.dilation[0]),
            'STAGED': int(self.staged),
            'STRIP': self.strip,
            'GRAD_STRIP': self.grad_strip,
            'CHUNK': self.chunk,
            'GRAD_CHUNK': self.grad_chunk,
            'THREADS': THREADS,
        }
        flags = {
            'CHANNELS_LAST': self.channels_last,
            'PIXEL_MAJOR': self.pixel_major and self.staged,
            'WIDE': self.wide,
        }
        macros.update({name: 1 for name, on in flags.items() if on})
        return ('-std=c++17', *(f'-D{name}={value}' for name, value in macros.items()))


@dataclass(frozen=True)
class _Tile:
    """The part of the staged tensor under a block's strips, rows and channels."""

    specialisation: Specialisation
    function: str
    strips: int
    rows: int
    channels: int
    planes: int = 1

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
            return (self.strips * self.specialisation.grad_strip - 1) // stride + reach // stride + 1
        return (self.strips * self.specialisation.strip - 1) * stride + reach + 1

    @property
    def pitch(self) -> int:
        """Elements from row to row: whole vectors, as the last strip reads them."""
        strip = self.specialisation.strip
        return _divide_up(self.width, strip) * strip

    @property
    def channel_pitch(self) -> int:
        """Elements from channel to channel."""
        return self.height * self.pitch

    @property
    def kernel_at(self) -> int:
        """Elements before the staged kernel, whose pairs need a whole beginning."""
        return _divide_up(self.planes * self.channels * self.channel_pitch, 8) * 8

    @property
    def kernel(self) -> int:
        """Elements of the staged kernel, as the source lays them out: none, rows of taps, or whole windows."""
        specialisation = self.specialisation
        (height, width), rows = specialisation.kernel_size, self.planes * self.rows
        if not specialisation.pixel_major:
            return 0
        if self.function == 'grad_input':
            return rows * self.width * width
        pair = 2 if specialisation.dtype.itemsize == 2 else 1
        run = height * width if pair == 1 else height * width // 2 * 2 + 2
        return rows * self.strips * (specialisation.strip * run + pair)

    @property
    def shared(self) -> int:
        """Bytes of shared memory."""
        return (self.kernel_at + self.kernel) * self.specialisation.dtype.itemsize

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
    arguments: tuple[int, ...]

    @cached_property
    def scalars(self) -> tuple:
        """The arguments as the scalars that CuPy passes on."""
        import numpy

        return tuple(map(numpy.int64 if self.specialisation.wide else numpy.int32, self.arguments))


@lru_cache(maxsize=1 << 14)
def plan(
    function: str,
    x: Layout,
    k: Layout,
    y: Layout,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    device: Device = Device(),  # noqa: B008
) -> Launch:
    """Plans a launch. It needs no GPU, and remembers its plans: a network asks for the same ones again and again.

    Args:
        function (str): 'forward', 'grad_input' or 'grad_kernel'.
        x (Layout): The tensor on the input's side, (N, C, H, W).
        k (Layout): The kernel or its gradient, (N, G, Kh, Kw, Ho, Wo).
        y (Layout): The tensor on the output's side, (N, C, Ho, Wo), channels-last where ``x`` is.
        stride (tuple): Vertical and horizontal stride.
        padding (tuple): Vertical and horizontal padding.
        dilation (tuple): Vertical and horizontal dilation.
        device (Device): The limits of the GPU.
    """
    (n, c, in_h, in_w), (groups, out_h, out_w) = x.shape, (k.shape[1], *k.shape[4:])
    group_channels = c // groups
    specialisation = Specialisation(
        dtype=x.dtype,
        kernel_size=k.shape[2:4],
        stride=stride,
        dilation=dilation,
        channels_last=not (x.is_dense(3) and y.is_dense(3)),
        pixel_major=not k.is_dense(5) and k.is_dense(3) and k.stride[2] == k.shape[3] and k.misalignment % 4 == 0,
        wide=max(x.extent, k.extent, y.extent) >= 1 << 31,
    )
    if function == 'grad_input':
        strip, chunk = specialisation.grad_strip, specialisation.grad_chunk
        all_strips, all_rows = _divide_up(padding[1] % stride[1] + in_w, strip), in_h
    else:
        strip, chunk = specialisation.strip, specialisation.chunk
        all_strips, all_rows = _divide_up(out_w, strip), out_h

    # A block takes up to 8 strips of a row: 128 bytes in float32, which a warp reads at once.
    strips = _share(all_strips, 8)
    rows = _share(all_rows, THREADS // strips)
    chunk = _share(group_channels, chunk)
    if specialisation.staged:
        while _Tile(specialisation, function, strips, rows, chunk).shared > device.shared:
            if rows > 4 or rows > 1 and chunk == 1:
                rows -= 1
            elif chunk > 1:
                chunk = _divide_up(chunk, 2)
            else:
                strips -= 1
    rows, chunk = _share(all_rows, rows), _share(group_channels, chunk)
    units = n * groups * (1 if function == 'grad_kernel' else _divide_up(group_channels, chunk))
    # Little work is spread over more blocks.
    tiles_x = _divide_up(all_strips, strips)
    while rows > 4 and tiles_x * _divide_up(all_rows, rows) * units < 2 * device.multiprocessors:
        rows = _divide_up(rows, 2)
    tile = _Tile(specialisation, function, strips, rows, chunk)
    tiles_y = _divide_up(all_rows, rows)
    # Small images share a block.
    planes = 1
    if tiles_x * tiles_y == 1:
        fitting = device.shared // tile.shared if specialisation.staged else THREADS
        enough = units // max(1, 2 * device.multiprocessors)
        planes = max(1, min(enough, fitting, THREADS // (strips * rows)))
        tile = replace(tile, planes=planes)
    blocks = tiles_x * tiles_y * _divide_up(units, planes)

    if specialisation.channels_last:
        axis, size = 1, specialisation.channel_vector
        whole = group_channels % size == 0 and chunk % size == 0
    else:
        axis, size, whole = 3, specialisation.strip, True
    vectors = (whole and x.has_vectors(axis, size), whole and y.has_vectors(axis, size))
    arguments = (groups, group_channels, in_h, in_w, out_h, out_w, *padding, *x.stride, *y.stride, *k.stride)
    arguments += (*vectors, k.has_vectors(5, specialisation.strip), chunk, strips, rows, planes, tiles_x, tiles_y)
    arguments += (units, blocks, tile.height, tile.width, tile.pitch, tile.channel_pitch, tile.kernel_at, k.extent)
    return Launch(
        specialisation,
        function,
        grid=min(blocks, device.max_grid),
        block=_divide_up(strips * rows * planes, 32) * 32,
        shared=tile.shared if specialisation.staged else 0,
        arguments=tuple(int(a) for a in arguments),
    )


def fit(written: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Copies what the kernels cannot read in place: ``x`` and ``y`` must be both channels-last or both not."""
    is_last = not written.is_contiguous() and written.is_contiguous(memory_format=torch.channels_last)
    axis, memory_format = (1, torch.channels_last) if is_last else (3, torch.contiguous_format)
    return tuple(
        t if t.stride(axis) == 1 or t.shape[axis] == 1 else t.contiguous(memory_format=memory_format) for t in (x, y)
    )


def _run(function: str, written: Tensor, x: Tensor, k: Tensor, y: Tensor, stride: Pair, padding: Pair, dilation: Pair):
    if not x.numel() or not y.numel():
        written.zero_()
        return
    import cupy

    given = x, y
    x, y = fit(y if written is k else written, x, y)
    index = x.device.index
    geometry = tuple(stride), tuple(padding), tuple(dilation)
    launch = plan(function, Layout.of(x), Layout.of(k), Layout.of(y), *geometry, _device(index))
    with torch.cuda.device(index), cupy.cuda.ExternalStream(torch.cuda.current_stream(index).cuda_stream, index):
        compiled = _function(index, launch.specialisation, function)
        pointers = x.data_ptr(), k.data_ptr(), y.data_ptr()
        compiled((launch.grid,), (launch.block,), (*pointers, *launch.scalars), shared_mem=launch.shared)
    for before, after in zip(given, (x, y), strict=True):
        if before is written and after is not written:
            written.copy_(after)


@cache
def _device(index: int) -> Device:
    """Returns the limits of a GPU. At least two blocks share the memory of a multiprocessor."""
    import cupy

    limits = cupy.cuda.Device(index).attributes
    half = limits['MaxSharedMemoryPerMultiprocessor'] // 2 - (1 << 10)
    return Device(max(48 << 10, min(half, 64 << 10)), limits['MultiProcessorCount'])


@cache
def _module(index: int, specialisation: Specialisation):
    """Compiles for the current device, which is ``index``."""
    import cupy

    return cupy.RawModule(code=SOURCE.read_text(), options=specialisation.options)


@cache
def _function(index: int, specialisation: Specialisation, name: str):
    function = _module(index, specialisation).get_function(name)
    function.max_dynamic_shared_size_bytes = _device(index).shared
    return function


def _divide_up(a: int, b: int) -> int:
    return -(-a // b)


def _share(total: int, at_most: int) -> int:
    """Returns the size of the parts when ``total`` is cut into equal parts of ``at_most``."""
    return _divide_up(total, _divide_up(total, at_most))
