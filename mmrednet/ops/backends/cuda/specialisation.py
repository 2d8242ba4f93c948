"""The compile-time choices of a module of CUDA kernels: its source, and the values that are fixed."""

from dataclasses import dataclass
from functools import cached_property
from math import gcd
from pathlib import Path

import torch

from .. import Pair
from .arithmetic import round_up

THREADS = 128  # threads of a block, at most
CHUNK = 16  # channels whose sums a thread holds in registers; the paper's groups have as many
WIDEST_ROW = 9  # taps of a window's row, at most, that a thread holds in registers at once
TAPS_AT_A_TIME = 6  # of a longer row, a thread holds about this many taps at once
SIDE = 8  # pixels of a strip on tensor cores, whose operands consist of parts of 8 x 8 values
WARP_ROWS = 4  # rows that one warp computes on tensor cores

ELEMENTS = {
    torch.float16: 'Float16',
    torch.bfloat16: 'BFloat16',
    torch.float32: 'Plain<float>',
    torch.float64: 'Plain<double>',
}

# The fields of the source's struct Launch, all of type Index. xn to kj are the strides of the tensors in elements,
# and vector_* is the number of elements of a tensor that can be read at a time.
ARGUMENTS = tuple(
    'groups group_channels in_h in_w out_h out_w pad_h pad_w '
    'xn xc xh xw yn yc yh yw kn kg ku kv ki kj vector_x vector_y vector_k kernel_extent '
    'chunk strips rows planes tiles_x tiles_y chunks units blocks '
    'tile_h tile_w pitch channel_pitch plane_pitch kernel_at kernel_pitch'.split()
)

# The source files of each family of kernels. The file named like the function (forward, ...) is added at the end.
SOURCES = {
    'tiled': ('common', 'tiled'),
    'narrow': ('common', 'narrow'),
    'pixels': ('common', 'channels_last', 'pixels'),
    'bands': ('common', 'channels_last', 'bands'),
}


def vector_size(dtype: torch.dtype) -> int:
    """Returns the number of elements in 16 bytes, the most that a thread reads or writes at a time."""
    return 16 // dtype.itemsize


def strip_size(dtype: torch.dtype) -> int:
    """Returns the number of pixels of a strip. A thread computes a strip, and reads as many elements at a time."""
    return 2 if dtype.itemsize == 8 else 4


@dataclass(frozen=True)
class Specialisation:
    """A module of kernels: everything that is fixed at compile time. Image sizes are not."""

    dtype: torch.dtype
    kernel_size: Pair
    stride: Pair
    dilation: Pair
    wide: bool  # whether indices have 64 bits
    kernels: str = 'tiled'  # the family of kernels, a key of SOURCES
    # The horizontal padding modulo a strip times the stride. It determines where the first strip starts within a vector
    # of memory. Only the family 'tiled' uses it.
    phase: int = 0
    narrow: int = 0  # pixels of a row of the image in the family 'narrow', else 0

    def source(self, *functions: str) -> str:
        """Returns the CUDA source of some of 'forward', 'grad_input' and 'grad_kernel'."""
        parts = (Path(__file__).with_name(f'{part}.cu') for part in (*SOURCES[self.kernels], *functions))
        return ''.join(f'#line 1 "{part.name}"\n{part.read_text()}' for part in parts)

    def constant(self, name: str, function: str) -> int:
        """Returns one of ``constants``. For grad_input, a constant named GRAD_... takes precedence."""
        return self.constants.get(f'GRAD_{name}' if function == 'grad_input' else name, self.constants[name])

    @cached_property
    def constants(self) -> dict[str, int]:
        """The source's macros that are numbers. The head of common.cu explains them."""
        (kh, kw), (sh, sw), (dh, dw) = self.kernel_size, self.stride, self.dilation
        tiled, bands, vector = self.kernels == 'tiled', self.kernels == 'bands', vector_size(self.dtype)
        strip = SIDE if bands else strip_size(self.dtype)
        grad_strip = strip if strip % sw == 0 else sw  # a strip of grad_input is a multiple of the stride
        return {
            'KH': kh,
            'KW': kw,
            'SH': sh,
            'SW': sw,
            'DH': dh,
            'DW': dw,
            'ROW_STEP': sh // gcd(sh, dh),
            'TAPS': kw if kw <= WIDEST_ROW else round_up(TAPS_AT_A_TIME, sw),
            'THREADS': THREADS,
            'NARROW': self.narrow,
            'WARP_ROWS': WARP_ROWS if bands else 0,
            'CHANNELS_LAST': int('channels_last' in SOURCES[self.kernels]),
            'STRIP': strip,
            'GRAD_STRIP': grad_strip,
            'CHUNK': CHUNK,
            'GRAD_CHUNK': max(1, CHUNK * strip // max(strip, grad_strip)),
            'PAIR': max(1, 4 // self.dtype.itemsize),
            'SHIFT': -self.phase % strip if tiled else 0,
            'GRAD_SHIFT': (self.phase // sw - (kw - 1) * dw // sw) % strip if tiled else 0,
            'GRAD_PHASE': self.phase // sw % (grad_strip // sw),
            # A run of taps may start at any element of the first vector that holds a part of it.
            'RUN_PITCH': round_up(kh * kw + vector - 1, vector),
            'ROW_PITCH': round_up(kw + vector - 1, vector),
        }

    @property
    def options(self) -> tuple[str, ...]:
        """The compiler's options, which define the source's macros."""
        macros = {
            'ELEMENT': ELEMENTS[self.dtype],
            'INDEX': 'long long' if self.wide else 'int',
            'ARGUMENTS': ','.join(ARGUMENTS),
        }
        return ('-std=c++17', *(f'-D{name}={value}' for name, value in (macros | self.constants).items()))
