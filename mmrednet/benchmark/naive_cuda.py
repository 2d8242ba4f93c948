"""Straightforward CUDA kernels, with one thread for each element of the result, for comparison with the backend."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..ops.backends import Pair
from ..ops.backends.cuda import Stream

DTYPES = {torch.float32: 'float', torch.float64: 'double'}
SOURCE = Path(__file__).with_name('naive.cu')


def options(dtype: torch.dtype) -> tuple[str, ...]:
    """Returns the compiler's options."""
    return '-std=c++17', f'-DELEMENT={DTYPES[dtype]}'


def sizes(x: Tensor, k: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> tuple[int, ...]:
    """Returns the kernels' last arguments, all of them C's ``int``."""
    return (k.shape[1], x.shape[1], *x.shape[2:], *k.shape[2:], *stride, *padding, *dilation)


def launch(name: str, written: Tensor, x: Tensor, k: Tensor, y: Tensor, *geometry: Pair) -> None:
    """Runs one CUDA kernel on the input, the kernel and the output, or on their gradients. All three are contiguous.

    ``name`` is 'forward', 'grad_input' or 'grad_kernel'. ``written`` is the one of the three that is written.
    """
    import cupy
    import numpy

    index, total = x.device.index, written.numel()
    pointers = x.data_ptr(), k.data_ptr(), y.data_ptr()
    stream = Stream(torch.cuda.current_stream(index).cuda_stream)
    arguments = (*pointers, numpy.int64(total), *map(numpy.int32, sizes(x, k, *geometry)))
    with torch.cuda.device(index), cupy.cuda.Device(index):
        _function(index, x.dtype, name)((min(-(-total // 256), 1 << 20),), (256,), arguments, stream=stream)


@cache
def _function(index: int, dtype: torch.dtype, name: str):
    import cupy

    return cupy.RawModule(code=SOURCE.read_text(), options=options(dtype)).get_function(name)
