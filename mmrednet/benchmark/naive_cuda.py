"""Straightforward CUDA kernels, with one thread for each element of the result, for comparison with the backend."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..ops.backends import Pair
from ..ops.backends.cuda import Stream

DTYPES = {torch.float32: 'float', torch.float64: 'double'}
SOURCE = Path(__file__).with_name('naive.cu')


def involution2d(out: Tensor, input: Tensor, kernel: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> None:
    """Writes the forward pass to ``out``; all tensors must be contiguous."""
    _run('forward', out, input, kernel, out, stride, padding, dilation)


def grad_input(out: Tensor, grad_output: Tensor, kernel: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> None:
    """Writes the gradient for the input; all tensors must be contiguous."""
    _run('grad_input', out, out, kernel, grad_output, stride, padding, dilation)


def grad_kernel(out: Tensor, grad_output: Tensor, input: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> None:
    """Writes the gradient for the kernel; all tensors must be contiguous."""
    _run('grad_kernel', out, input, out, grad_output, stride, padding, dilation)


def options(dtype: torch.dtype) -> tuple[str, ...]:
    """Returns the compiler's options."""
    return '-std=c++17', f'-DELEMENT={DTYPES[dtype]}'


def sizes(x: Tensor, k: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> tuple[int, ...]:
    """Returns the kernels' last arguments, all of them C's ``int``."""
    return (k.shape[1], x.shape[1], *x.shape[2:], *k.shape[2:], *stride, *padding, *dilation)


@cache
def _function(index, dtype, name):
    import cupy

    return cupy.RawModule(code=SOURCE.read_text(), options=options(dtype)).get_function(name)


def _run(name, written, x, k, y, stride, padding, dilation):
    import cupy
    import numpy

    index, total = x.device.index, written.numel()
    pointers = x.data_ptr(), k.data_ptr(), y.data_ptr()
    stream = Stream(torch.cuda.current_stream(index).cuda_stream)
    arguments = (*pointers, numpy.int64(total), *map(numpy.int32, sizes(x, k, stride, padding, dilation)))
    with torch.cuda.device(index), cupy.cuda.Device(index):
        _function(index, x.dtype, name)((min(-(-total // 256), 1 << 20),), (256,), arguments, stream=stream)
