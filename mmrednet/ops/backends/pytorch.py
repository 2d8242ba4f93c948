"""The operator in PyTorch alone, for every device: tap by tap and in place.

For one tap (u, v), a rectangle of the output is computed from a strided rectangle of the input. Both are views: nothing
is padded, unfolded or copied. On the CPU the work is done tile by tile, so that all taps use cached data.
"""

from collections.abc import Iterator, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Pair

# The number of output elements of a tile on the CPU: 512 KiB in float32, half of a common second-level cache.
TILE = 1 << 17

Index = tuple[slice, ...]


def load() -> None:
    """Does nothing: this backend is always ready."""


def involution2d(out: Tensor, input: Tensor, kernel: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> None:
    """Writes eq. 4 to ``out`` (N, C, Ho, Wo)."""
    total = _zeros(out)
    grouped_total, grouped_input = _grouped(total, kernel.shape[1]), _grouped(input, kernel.shape[1])
    for tile, to, at, u, v in _steps(input, kernel, stride, padding, dilation):
        grouped_total[tile][to].addcmul_(grouped_input[tile][at], kernel[tile][:, :, u, v].unsqueeze(2)[to])
    if total is not out:
        out.copy_(total)


def grad_input(out: Tensor, grad_output: Tensor, kernel: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> None:
    """Writes the gradient of the input to ``out`` (N, C, H, W)."""
    total = _zeros(out)
    grouped_total, grouped_grad = _grouped(total, kernel.shape[1]), _grouped(grad_output, kernel.shape[1])
    for tile, to, at, u, v in _steps(out, kernel, stride, padding, dilation):
        grouped_total[tile][at].addcmul_(grouped_grad[tile][to], kernel[tile][:, :, u, v].unsqueeze(2)[to])
    if total is not out:
        out.copy_(total)


def grad_kernel(out: Tensor, grad_output: Tensor, input: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> None:
    """Writes the gradient of the kernel to ``out`` (N, G, Kh, Kw, Ho, Wo)."""
    groups = out.shape[1]
    grouped_grad, grouped_input = _grouped(grad_output, groups), _grouped(input, groups)
    out.zero_()
    for tile, to, at, u, v in _steps(input, out, stride, padding, dilation):
        grad = grouped_grad[tile][to].to(accumulation_dtype(input))
        out[tile][:, :, u, v].unsqueeze(2)[to] = (grad * grouped_input[tile][at]).sum(2, keepdim=True)


def generate_kernel(features: Tensor, weight: Tensor, bias: Tensor | None, kernel_size: Sequence[int]) -> Tensor:
    """Returns the kernels (N, G, Kh, Kw, Ho, Wo) that a 1x1 convolution generates from features (N, R, Ho, Wo)."""
    kernel = F.conv2d(features, weight, bias)
    # `unflatten` would make all sizes constants in the files of torch's older ONNX exporter.
    return kernel.view(kernel.shape[0], weight.shape[0] // prod(kernel_size), *kernel_size, *kernel.shape[2:])


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Returns the dtype in which products of a tensor are accumulated."""
    return torch.float32 if tensor.itemsize < 4 else tensor.dtype


def _zeros(result: Tensor) -> Tensor:
    """Returns zeros to accumulate in: ``result`` itself, or for 16-bit types a float32 tensor like it."""
    if result.dtype == accumulation_dtype(result):
        return result.zero_()
    return torch.zeros_like(result, dtype=accumulation_dtype(result))


def _grouped(tensor: Tensor, groups: int) -> Tensor:
    """Views (N, C, H, W) as (N, G, C / G, H, W)."""
    return tensor.unflatten(1, (groups, tensor.shape[1] // groups))


def _steps(
    input: Tensor, kernel: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> Iterator[tuple[Index, Index, Index, int, int]]:
    """Yields (tile, to, at, u, v): the work of the tap (u, v) in a tile.

    ``tile`` indexes batch and groups. ``to`` indexes the output pixels whose tap is inside the input, and ``at`` the
    input pixels under that tap.
    """
    n, c, h, w = input.shape
    g, kh, kw, ho, wo = kernel.shape[1:]
    row_size = c // g * wo
    tile = TILE if input.device.type == 'cpu' else n * g * row_size * ho
    rows = min(ho, max(1, tile // row_size))
    groups = min(g, max(1, tile // (row_size * rows)))
    batch = min(n, max(1, tile // (row_size * rows * groups)))
    taps_x = [_overlap(0, wo, w, stride[1], v * dilation[1] - padding[1]) for v in range(kw)]
    for n0 in range(0, n, batch):
        for g0 in range(0, g, groups):
            for row in range(0, ho, rows):
                for u in range(kh):
                    to_y, at_y = _overlap(row, min(row + rows, ho), h, stride[0], u * dilation[0] - padding[0])
                    for v, (to_x, at_x) in enumerate(taps_x):
                        if to_y.start < to_y.stop and to_x.start < to_x.stop:
                            every = (slice(None),) * 3
                            tile_index = (slice(n0, n0 + batch), slice(g0, g0 + groups))
                            yield tile_index, (*every, to_y, to_x), (*every, at_y, at_x), u, v


def _overlap(start: int, stop: int, size: int, stride: int, offset: int) -> tuple[slice, slice]:
    """Returns the outputs i in [start, stop) whose input ``i * stride + offset`` is in [0, size), and those inputs."""
    first = max(start, -(offset // stride))
    last = min(stop - 1, (size - 1 - offset) // stride)
    return slice(first, last + 1), slice(first * stride + offset, last * stride + offset + 1, stride)
