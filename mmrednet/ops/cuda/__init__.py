"""The operator in CUDA, compiled by CuPy at first use: one module per specialisation, whatever the image sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import gcd
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name('involution2d.cu')
# Threads of a block, bytes of shared memory that every GPU gives one, and blocks of a launch: kernels loop over the rest.
THREADS = 128
SHARED = 48 << 10
GRID = 1 << 20

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
        RuntimeError: CuPy cannot be imported. The message says what to install.
    """
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        major = (torch.version.cuda or '12').split('.')[0]
        raise RuntimeError(f'the CUDA kernels need CuPy ({error}): pip install cupy-cuda{major}x') from error


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
    def staged(self) -> bool:
        """Whether shared memory can hold the window of one strip of pixels."""
        return all(_Tile(self, f, 1, 1, 1).shared <= SHARED for f in ('forward', 'grad_input'))

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
        flags = [name for name, on in (('CHANNELS_LAST', self.channels_last), ('WIDE', self.wide)) if on]
        return ('-std=c++17', *(f'-D{name}={value}' for name, value in macros.items()), *(f'-D{f}' for f in flags))


@dataclass(frozen=True)
class _Tile:
    """The part of the staged tensor under a block's strips, rows and channels."""

    specialisation: Specialisation
    function: str
    strips: int
    rows: int
    channels: int

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
    def shared(self) -> int:
        """Bytes of shared memory."""
        return self.channels * self.channel_pitch * self.specialisation.dtype.itemsize

    def _reach(self, axis: int) -> Pair:
        """Returns how far the window reaches from its first tap to its last, and the stride."""
        specialisation = self.specialisation
        return (specialisation.kernel_size[axis] - 1) * specialisation.dilation[axis], specialisation.stride[axis]


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: everything but the pointers."""

    specialisation: Specialisation
    function: str
    grid: int
    block: int
    shared: int
    arguments: tuple[int, ...]


def plan(
    function: str,
    x: Tensor,
    k: Tensor,
    y: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    max_grid: int = GRID,
    shared: int = SHARED,
) -> Launch:
    """Plans a launch. It looks at shapes, strides and addresses only, so it works without a GPU.

    Args:
        function (str): 'forward', 'grad_input' or 'grad_kernel'.
        x (Tensor): The tensor on the input's side, (N, C, H, W), laid out as ``fit`` returns it.
        k (Tensor): The kernel or its gradient, (N, G, Kh, Kw, Ho, Wo).
        y (Tensor): The tensor on the output's side, (N, C, Ho, Wo), laid out as ``x``.
        stride (tuple): Vertical and horizontal stride.
        padding (tuple): Vertical and horizontal padding.
        dilation (tuple): Vertical and horizontal dilation.
        max_grid (int): Blocks of a launch at most. Defaults to GRID.
        shared (int): Bytes of shared memory of a block at most. Defaults to SHARED.
    """
    (n, c, in_h, in_w), (groups, out_h, out_w) = x.shape, (k.shape[1], *k.shape[4:])
    group_channels = c // groups
    specialisation = Specialisation(
        dtype=x.dtype,
        kernel_size=tuple(k.shape[2:4]),
        stride=tuple(stride),
        dilation=tuple(dilation),
        channels_last=_channels_last(x, y),
        wide=max(_extent(x), _extent(k), _extent(y)) >= 1 << 31,
    )
    if function == 'grad_input':
        strip, chunk = specialisation.grad_strip, specialisation.grad_chunk
        origin = padding[1] // stride[1] * stride[1]
        all_strips, all_rows = _divide_up(padding[1] + in_w - origin, strip), in_h
    else:
        strip, chunk = specialisation.strip, specialisation.chunk
        all_strips, all_rows = _divide_up(out_w, strip), out_h

    # A block takes up to 8 strips of a row: 128 bytes in float32, which a warp reads at once.
    strips = _share(all_strips, 8)
    rows = _share(all_rows, THREADS // strips)
    chunk = _share(group_channels, chunk)
    if specialisation.staged:
        while _Tile(specialisation, function, strips, rows, chunk).shared > shared:
            if rows > 4 or rows > 1 and chunk == 1:
                rows -= 1
            elif chunk > 1:
                chunk = _divide_up(chunk, 2)
            else:
                strips -= 1
    rows, chunk = _share(all_rows, rows), _share(group_channels, chunk)
    tile = _Tile(specialisation, function, strips, rows, chunk)
    tiles_x, tiles_y = _divide_up(all_strips, strips), _divide_up(all_rows, rows)
    units = n * groups * (1 if function == 'grad_kernel' else _divide_up(group_channels, chunk))
    # Small images share a block.
    planes = 1
    if tiles_x * tiles_y == 1:
        planes = min(units, THREADS // (strips * rows))
        if specialisation.staged:
            planes = max(1, min(planes, shared // tile.shared))
    blocks = tiles_x * tiles_y * _divide_up(units, planes)

    vectors = (_by_vectors(t, strip) for t in (x, y, k))
    arguments = (groups, group_channels, in_h, in_w, out_h, out_w, *padding, *x.stride(), *y.stride(), *k.stride())
    arguments += (*vectors, chunk, strips, rows, planes, tiles_x, tiles_y, units, blocks)
    arguments += (tile.height, tile.width, tile.pitch, tile.channel_pitch)
    return Launch(
        specialisation,
        function,
        grid=min(blocks, max_grid),
        block=_divide_up(strips * rows * planes, 32) * 32,
        shared=planes * tile.shared if specialisation.staged else 0,
        arguments=tuple(int(a) for a in arguments),
    )


def fit(written: Tensor, x: Tensor, k: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Copies what the kernels cannot read in place: ``x`` and ``y`` must be both channels-last or both not."""
    layout = x if written is x else y
    dense = layout.is_contiguous(memory_format=torch.channels_last) and not layout.is_contiguous()
    memory_format = torch.channels_last if dense else torch.contiguous_format
    unit = 1 if dense else 3
    x, y = (
        t if t.stride(unit) == 1 or t.shape[unit] == 1 else t.contiguous(memory_format=memory_format) for t in (x, y)
    )
    return x, k, y


def _run(function: str, written: Tensor, x: Tensor, k: Tensor, y: Tensor, stride: Pair, padding: Pair, dilation: Pair):
    if not x.numel() or not y.numel():
        written.zero_()
        return
    import cupy
    import numpy

    x, k, y = fit(written, x, k, y)
    with torch.cuda.device(x.device):
        launch = plan(function, x, k, y, stride, padding, dilation)
        integer = numpy.int64 if launch.specialisation.wide else numpy.int32
        arguments = (x.data_ptr(), k.data_ptr(), y.data_ptr(), *map(integer, launch.arguments))
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream, x.device.index):
            compiled = _function(x.device.index, launch.specialisation, function)
            compiled((launch.grid,), (launch.block,), arguments, shared_mem=launch.shared)


@cache
def _module(device: int, specialisation: Specialisation):
    """Compiles for the current device, which is ``device``."""
    import cupy

    return cupy.RawModule(code=SOURCE.read_text(), options=specialisation.options)


@cache
def _function(device: int, specialisation: Specialisation, name: str):
    return _module(device, specialisation).get_function(name)


def _channels_last(x: Tensor, y: Tensor) -> bool:
    return not all(t.stride(3) == 1 or t.shape[3] == 1 for t in (x, y))


def _by_vectors(tensor: Tensor, size: int) -> bool:
    """Whether rows of pixels can be read ``size`` elements at a time: they are dense, and each begins on a boundary."""
    pixel = tensor.dim() - 1
    strides = [step for axis, step in enumerate(tensor.stride()) if axis != pixel and tensor.shape[axis] > 1]
    aligned = tensor.data_ptr() % (size * tensor.itemsize) == 0
    return aligned and tensor.stride(pixel) == 1 and all(step % size == 0 for step in strides)


def _extent(tensor: Tensor) -> int:
    """Returns how many elements lie between the first and the last, both included."""
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _divide_up(a: int, b: int) -> int:
    return -(-a // b)


def _share(total: int, at_most: int) -> int:
    """Returns the size of the parts when ``total`` is cut into equal parts of ``at_most``."""
    return _divide_up(total, _divide_up(total, at_most))


__all__: Sequence[str] = ('grad_input', 'grad_kernel', 'involution2d', 'load')
