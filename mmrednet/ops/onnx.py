"""Decompositions of the operators for ``torch.onnx.export``, into standard ONNX operators.

The exporter looks up an operator that it cannot translate in torch's own table of decompositions. So exporting a
network with involutions needs no setup, and this module does not import ONNX.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp import decomposition_table, register_decomposition

from .backends import Pair
from .backends.pytorch import accumulation_dtype, generate_kernel
from .fused import FusedInvolution2d
from .involution import Involution2d
from .window_product import WindowProduct2d


def sum_of_taps(input, kernel, stride, padding, dilation, backend=None) -> Tensor:
    """Computes eq. 4 as a sum over the taps, also for sizes that are unknown when a network is exported."""
    groups, kh, kw = map(int, kernel.shape[1:4])  # ints, also under torch.jit.trace
    values = kernel.to(accumulation_dtype(input)).reshape(-1, kh * kw, *kernel.shape[4:]).split(1, 1)
    taps = _taps(input, groups, (kh, kw), kernel.shape[4:], stride, padding, dilation)
    products = (pixels * values[u * kw + v] for u, v, pixels in taps)
    total = next(products)
    waiting = next(products, None)
    # A sum has two operands. ONNX Runtime first computes the one whose node comes last in the file. So the product of a
    # tap is created before the sum of the earlier taps. Otherwise all Kh * Kw products would be in memory at once.
    while waiting is not None:
        product, waiting = waiting, next(products, None)
        total = total + product
    return total.reshape(*input.shape[:2], *kernel.shape[4:]).to(input.dtype)


def _window_product2d(query, key, groups, kernel_size, stride, padding, dilation, backend=None) -> Tensor:
    """Computes the window product tap by tap, also for sizes that are unknown when the network is exported."""
    dtype, channels = accumulation_dtype(query), query.shape[1]
    grouped = query.to(dtype).reshape(-1, channels // groups, *query.shape[2:])
    taps = _taps(key, groups, kernel_size, query.shape[2:], stride, padding, dilation)
    products = {(u, v): (grouped * pixels).sum(1) for u, v, pixels in taps}
    rows = torch.stack([products[tap] for tap in sorted(products)], 1)
    out = rows.reshape(query.shape[0], groups, *kernel_size, *query.shape[2:])
    return out.to(query.dtype)


def _taps(
    input: Tensor, groups: int, kernel_size: Pair, size: Sequence[int], stride: Pair, padding: Pair, dilation: Pair
) -> Iterator[tuple[int, int, Tensor]]:
    """Yields each tap (u, v) with the pixels under it, (N * G, C / G, Ho, Wo), column by column of the window."""
    (kh, kw), (ho, wo) = kernel_size, size
    dtype = accumulation_dtype(input)
    # The input is padded to a multiple of the stride. Then the exporter can prove the length of each slice, and the
    # pixels of each phase of the stride are copied once instead of once for each tap.
    last_row, last_column = (kh - 1) * dilation[0] // stride[0], (kw - 1) * dilation[1] // stride[1]
    rows, columns = ho + last_row, wo + last_column
    bottom = rows * stride[0] - input.shape[2] - padding[0]
    right = columns * stride[1] - input.shape[3] - padding[1]
    padded = F.pad(input.to(dtype), (padding[1], right, padding[0], bottom))
    padded = padded.reshape(-1, input.shape[1] // groups, rows, stride[0], columns, stride[1])
    phases = [row.unbind() for row in padded.permute(3, 5, 0, 1, 2, 4).unbind()]
    for v in range(kw):
        left, phase_x = divmod(v * dilation[1], stride[1])
        shifted = [_part(row[phase_x], 3, left, last_column) for row in phases]
        for u in range(kh):
            top, phase_y = divmod(u * dilation[0], stride[0])
            yield u, v, _part(shifted[phase_y], 2, top, last_row)


def _part(tensor: Tensor, axis: int, start: int, last: int) -> Tensor:
    """Returns ``tensor[start : start - last]`` along an axis. Indexing would also slice the axes before it."""
    return torch.ops.aten.slice.Tensor(tensor, axis, start, start - last or None)


def _operator(input, kernel, stride, padding, dilation, backend=None) -> Tensor:
    """Writes one operator of ONNX Runtime. ``backends/cpu/onnxruntime.cpp`` implements it."""
    geometry: dict[str, Any] = dict(stride=list(stride), padding=list(padding), dilation=list(dilation))
    shape = *input.shape[:2], *kernel.shape[4:]
    return torch.onnx.ops.symbolic(
        'mmrednet::involution2d', (input, kernel), geometry, dtype=input.dtype, shape=shape, version=1
    )


def _decompositions(involution2d: Callable[..., Tensor]) -> dict:
    def fused(input, features, weight, bias, kernel_size, *geometry):
        return involution2d(input, generate_kernel(features, weight, bias, kernel_size), *geometry)

    return {Involution2d.overload: involution2d, FusedInvolution2d.overload: fused}


@contextmanager
def one_operator() -> Iterator[None]:
    """Makes ``torch.onnx.export`` write ``mmrednet::involution2d`` instead of standard operators."""
    standard = {overload: decomposition_table[overload] for overload in _decompositions(_operator)}
    decomposition_table.update(_decompositions(_operator))
    try:
        yield
    finally:
        decomposition_table.update(standard)


for _overload, _decomposition in _decompositions(sum_of_taps).items():
    register_decomposition(_overload)(_decomposition)
register_decomposition(WindowProduct2d.overload)(_window_product2d)
for _class in (Involution2d, FusedInvolution2d, WindowProduct2d):
    # Without a meta function, torch.compile would compute the shapes with the decomposition.
    register_decomposition(_class.overload, type='meta')(_class.fake)
