"""The problem that a kernel solves: an operator, and the layouts of its tensors."""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from .. import Pair
from .arithmetic import divide_up
from .specialisation import WIDEST_ROW, Specialisation, strip_size, vector_size

WIDE_FROM = (1 << 31) - (1 << 16)  # elements. From here, indices need 64 bits: they go a little past the end


class Layout(NamedTuple):
    """The facts about a tensor that a launch depends on. ``stride`` is in elements, ``misalignment`` in bytes."""

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
        """The strides, with 0 for a dimension of one element: torch allows any stride there."""
        return tuple(step if size > 1 else 0 for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def extent(self) -> int:
        """The number of elements in memory from the tensor's first to its last one, both included."""
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def is_run(self) -> bool:
        """Whether the tensor is contiguous and starts at a multiple of 16 bytes."""
        sizes = [prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        runs = (step == size for length, step, size in zip(self.shape, self.stride, sizes, strict=True) if length > 1)
        return self.misalignment == 0 and all(runs)

    def is_dense(self, axis: int) -> bool:
        """Whether the elements along an axis are neighbours in memory."""
        return self.stride[axis] == 1 or self.shape[axis] == 1

    def find_vector(self, axis: int, *sizes: int) -> int:
        """Returns the largest of ``sizes`` for which aligned vectors of that size cover an axis, or 1."""
        steps = [step for i, step in enumerate(self.stride) if i != axis and self.shape[i] > 1]
        return max(
            size
            for size in (*sizes, 1)
            if size == 1
            or self.stride[axis] == 1
            and self.misalignment % (size * self.dtype.itemsize) == 0
            and all(count % size == 0 for count in (self.shape[axis], *steps))
        )


class Share(NamedTuple):
    """An amount of work: all of it, or the share of one block.

    A unit is a chunk of the channels of one group of one image. All units of a share have the same strips and rows.
    """

    strips: int  # of a row of pixels
    rows: int
    channels: int  # of a unit, at most
    units: int


@dataclass(frozen=True)
class Problem:
    """One operator on tensors of given layouts."""

    function: str  # 'forward', 'grad_input' or 'grad_kernel'
    x: Layout  # the input or its gradient, (N, C, H, W)
    k: Layout  # the kernel or its gradient, (N, G, Kh, Kw, Ho, Wo)
    y: Layout  # the output or its gradient, (N, C, Ho, Wo)
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def dtype(self) -> torch.dtype:
        """The type of all tensors."""
        return self.x.dtype

    @property
    def kernel_size(self) -> Pair:
        """Height and width of the window."""
        return self.k.shape[2], self.k.shape[3]

    @property
    def group_channels(self) -> int:
        """Channels of a group."""
        return self.x.shape[1] // self.k.shape[1]

    @property
    def groups(self) -> int:
        """Groups of all images together."""
        return self.x.shape[0] * self.k.shape[1]

    def specialise(self, kernels: str, phase: int = 0, narrow: int = 0) -> Specialisation:
        """Returns the module of a family of kernels that solves the problem."""
        wide = max(self.x.extent, self.k.extent, self.y.extent) >= WIDE_FROM
        return Specialisation(
            self.dtype, self.kernel_size, self.stride, self.dilation, wide, kernels, phase=phase, narrow=narrow
        )

    @property
    def phase(self) -> int:
        """``Specialisation.phase`` for the families that read rows of pixels."""
        return self.padding[1] % (strip_size(self.dtype) * self.stride[1])

    @cached_property
    def is_channels_last(self) -> bool:
        """Whether the channels of a group, and the taps of a pixel, can be read by vectors of 16 bytes."""
        x, k, y, vector = self.x, self.k, self.y, vector_size(self.dtype)
        return (
            not (x.is_dense(3) and y.is_dense(3))
            and self.group_channels % vector == 0
            and x.find_vector(1, vector) == y.find_vector(1, vector) == vector
            and (k.is_dense(3) and k.stride[2] == k.shape[3] and k.misalignment == 0)
            and max(self.kernel_size) <= WIDEST_ROW
        )

    def measure(self, strip: int) -> Share:
        """Returns the whole work, in strips of ``strip`` pixels and with one group as a unit."""
        rows, columns = self.y.shape[2:]
        if self.function == 'grad_input':
            # The first strip starts at a multiple of the stride, if necessary left of the image.
            rows, columns = self.x.shape[2], self.padding[1] % self.stride[1] + self.x.shape[3]
        return Share(divide_up(columns, strip), rows, self.group_channels, self.groups)

    def count_read(self, axis: int, pixels: int) -> int:
        """Returns the rows (axis 0) or columns (axis 1) of the image that neighbouring pixels read."""
        stride, reach = self.stride[axis], (self.kernel_size[axis] - 1) * self.dilation[axis]
        if self.function != 'grad_input':
            return (pixels - 1) * stride + reach + 1
        between = axis == 0 and stride > 1  # the first row of a block may lie between two rows of y
        return (pixels - 1 + reach) // stride + 1 + between

    def find_steps(self, strip: int) -> Pair:
        """Returns the image columns from one strip to the next, and the image rows from one row to the next."""
        rows, columns = self.stride
        return (strip // columns, 1) if self.function == 'grad_input' else (strip * columns, rows)
