"""The operator in CUDA, compiled by CuPy at first use: one module per specialisation, whatever the image sizes."""

from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache, partial
from math import gcd, prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import Pair
from ..pytorch import generate_kernel

SOURCE = Path(__file__).with_name('involution2d.cu')
THREADS = 128  # of a block, at most

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


def fused_involution2d(
    out: Tensor,
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> None:
    """Writes eq. 4 to ``out`` for the kernel that the 1x1 convolution makes.

    ``out`` is contiguous or channels-last. Where :func:`fusing_pays` says no, and where shared memory cannot hold what
    one thread reads, the convolution writes the kernel to memory and :func:`involution2d` reads it.
    """
    if not input.numel():
        out.zero_()
        return
    x, y = fit(out, input, out)
    index = x.device.index
    shape = (features.shape[0], weight.shape[0] // prod(kernel_size), *kernel_size, *features.shape[2:])
    layouts = (Layout.of(t) for t in (x, features.new_empty(1).expand(shape), y))
    geometry = tuple(stride), tuple(padding), tuple(dilation)
    launch = plan('fused', *layouts, *geometry, _device(index), Layout.of(features))
    if launch and fusing_pays(features.shape[1], launch.chunks, x.dtype):
        bias = None if bias is None else bias.contiguous()
        _launch(launch, index, (x, features, weight.contiguous(), bias, y))
    else:
        kernel = generate_kernel(features, weight, bias, kernel_size)
        involution2d(out, input, kernel, stride, padding, dilation)


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
        """Taps of a window's row that a thread holds in registers at a time: all of them, unless the row is long."""
        width, stride = self.kernel_size[1], self.stride[1]
        return width if width <= 9 else (5 + stride) // stride * stride

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
            'TAPS': self.taps,
            'STAGED': int(self.staged),
            'STRIP': self.strip,
            'GRAD_STRIP': self.grad_strip,
            'CHUNK': self.chunk,
            'GRAD_CHUNK': self.grad_chunk,
            'THREADS': THREADS,
        }
        flags = {
            'FUSED': self.fused,
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
    reduced: int = 0  # channels of the features that a fused kernel stages

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
    def weights_at(self) -> int:
        """Elements before the staged weights of a fused kernel, which follow its features."""
        features = self.reduced * self.rows * self.strips * self.specialisation.strip
        return _divide_up(self.kernel_at + self.planes * features, 8) * 8

    @property
    def kernel(self) -> int:
        """Elements of the staged kernel, as the source lays them out: none, rows of taps, or whole windows.

        Of a fused kernel: the features and weights that make it.
        """
        specialisation = self.specialisation
        (height, width), rows = specialisation.kernel_size, self.planes * self.rows
        if self.function == 'fused':
            element = max(4, specialisation.dtype.itemsize)  # weights are staged as what they are summed in
            taps_pitch = _divide_up(specialisation.taps, 16 // element) * 16 // element
            row_pitch = _divide_up(width, specialisation.taps) * taps_pitch
            weights = self.planes * self.reduced * height * row_pitch
            return self.weights_at - self.kernel_at + weights * element // specialisation.dtype.itemsize
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
    chunks: int  # of a group's channels, each a block's
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
    features: Layout | None = None,
) -> Launch | None:
    """Plans a launch, or none where shared memory cannot hold what a fused one needs.

    It needs no GPU, and remembers its plans: a network asks for the same ones again and again.

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
    (n, c, in_h, in_w), (groups, out_h, out_w) = x.shape, (k.shape[1], *k.shape[4:])
    group_channels = c // groups
    specialisation = Specialisation(
        dtype=x.dtype,
        kernel_size=k.shape[2:4],
        stride=stride,
        dilation=dilation,
        channels_last=not (x.is_dense(3) and y.is_dense(3)),
        pixel_major=features is None
        and not k.is_dense(5)
        and k.is_dense(3)
        and k.stride[2] == k.shape[3]
        and k.misalignment % 4 == 0,
        wide=max(x.extent, (features or k).extent, y.extent) >= 1 << 31,
        fused=features is not None,
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
    reduced = features.shape[1] if features else 0
    make_tile = partial(_Tile, specialisation, function, reduced=reduced)
    if reduced and not (specialisation.staged and make_tile(1, 1, 1).shared <= device.shared):
        return None
    if specialisation.staged:
        while make_tile(strips, rows, chunk).shared > device.shared:
            if rows > 4 or rows > 1 and chunk == 1:
                rows -= 1
            elif reduced and strips > 1:
                strips -= 1  # rather than more chunks, each of which generates the kernel
            elif chunk > 1:
                chunk = _divide_up(chunk, 2)
            else:
                strips -= 1
    strips, rows, chunk = _share(all_strips, strips), _share(all_rows, rows), _share(group_channels, chunk)
    chunks = 1 if function == 'grad_kernel' else _divide_up(group_channels, chunk)
    units = n * groups * chunks
    # Little work is spread over more blocks.
    tiles_x = _divide_up(all_strips, strips)
    while rows > 4 and tiles_x * _divide_up(all_rows, rows) * units < 2 * device.multiprocessors:
        rows = _divide_up(rows, 2)
    tile = make_tile(strips, rows, chunk)
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
    arguments = (groups, group_channels, in_h, in_w, out_h, out_w, *padding, *x.stride, *y.stride, *vectors)
    if features:
        arguments += (*features.stride, features.has_vectors(axis, size), reduced, tile.weights_at)
    else:
        arguments += (*k.stride, k.has_vectors(5, specialisation.strip), k.extent)
    arguments += (chunk, strips, rows, planes, tiles_x, tiles_y, units, blocks)
    arguments += (tile.height, tile.width, tile.pitch, tile.channel_pitch, tile.kernel_at)
    return Launch(
        specialisation,
        function,
        grid=min(blocks, device.max_grid),
        block=_divide_up(strips * rows * planes, 32) * 32,
        shared=tile.shared if specialisation.staged else 0,
        chunks=chunks,
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
    given = x, y
    x, y = fit(y if written is k else written, x, y)
    index = x.device.index
    geometry = tuple(stride), tuple(padding), tuple(dilation)
    launch = plan(function, Layout.of(x), Layout.of(k), Layout.of(y), *geometry, _device(index))
    _launch(launch, index, (x, k, y))
    for before, after in zip(given, (x, y), strict=True):
        if before is written and after is not written:
            written.copy_(after)


def _launch(launch: Launch, index: int, tensors: tuple[Tensor | None, ...]) -> None:
    import cupy

    with torch.cuda.device(index), cupy.cuda.ExternalStream(torch.cuda.current_stream(index).cuda_stream, index):
        compiled = _function(index, launch.specialisation, launch.function)
        pointers = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
        compiled((launch.grid,), (launch.block,), (*pointers, *launch.scalars), shared_mem=launch.shared)


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
