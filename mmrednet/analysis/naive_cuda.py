"""The straightforward CUDA kernels, one thread an element of the result, to time the backend against."""

from functools import cache

import torch
from torch import Tensor

Pair = tuple[int, int]

DTYPES = {torch.float32: 'float', torch.float64: 'double'}
SOURCE = """
typedef ELEMENT T;

#define SIZES                                                                                                        \\
  long long total, int groups, int channels, int h, int w, int kh, int kw, int out_h, int out_w, int sh, int sw,     \\
      int ph, int pw, int dh, int dw
#define EACH_ELEMENT                                                    \\
  for (long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x; \\
       at < total; at += gridDim.x * (long long)blockDim.x)

extern "C" __global__ void forward(const T *x, const T *k, T *y, SIZES) {
  EACH_ELEMENT {
    const int j = at % out_w, i = at / out_w % out_h, c = at / out_w / out_h % channels;
    const long long n = at / out_w / out_h / channels, g = n * groups + c / (channels / groups);
    T sum = 0;
    for (int u = 0; u < kh; ++u)
      for (int v = 0; v < kw; ++v) {
        const int a = i * sh - ph + u * dh, b = j * sw - pw + v * dw;
        if (a >= 0 && a < h && b >= 0 && b < w)
          sum += k[((g * kh + u) * kw + v) * out_h * out_w + i * out_w + j] *
                 x[((n * channels + c) * h + a) * w + b];
      }
    y[at] = sum;
  }
}

extern "C" __global__ void grad_input(T *x, const T *k, const T *y, SIZES) {
  EACH_ELEMENT {
    const int b = at % w, a = at / w % h, c = at / w / h % channels;
    const long long n = at / w / h / channels, g = n * groups + c / (channels / groups);
    T sum = 0;
    for (int u = 0; u < kh; ++u)
      for (int v = 0; v < kw; ++v) {
        const int is = a + ph - u * dh, js = b + pw - v * dw, i = is / sh, j = js / sw;
        if (is >= 0 && is % sh == 0 && i < out_h && js >= 0 && js % sw == 0 && j < out_w)
          sum += k[((g * kh + u) * kw + v) * out_h * out_w + i * out_w + j] *
                 y[((n * channels + c) * out_h + i) * out_w + j];
      }
    x[at] = sum;
  }
}

extern "C" __global__ void grad_kernel(const T *x, T *k, const T *y, SIZES) {
  EACH_ELEMENT {
    const int j = at % out_w, i = at / out_w % out_h, v = at / out_w / out_h % kw, u = at / out_w / out_h / kw % kh;
    const int g = at / out_w / out_h / kw / kh % groups, size = channels / groups;
    const long long n = at / out_w / out_h / kw / kh / groups;
    const int a = i * sh - ph + u * dh, b = j * sw - pw + v * dw;
    T sum = 0;
    if (a >= 0 && a < h && b >= 0 && b < w)
      for (int c = g * size; c < (g + 1) * size; ++c)
        sum += y[((n * channels + c) * out_h + i) * out_w + j] * x[((n * channels + c) * h + a) * w + b];
    k[at] = sum;
  }
}
"""


def involution2d(out: Tensor, input: Tensor, kernel: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> None:
    """Writes the forward pass to ``out``; all tensors must be contiguous."""
    _run('forward', out, input, kernel, out, stride, padding, dilation)


def grad_input(
    grad_input: Tensor, grad_output: Tensor, kernel: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> None:
    """Writes the gradient for the input; all tensors must be contiguous."""
    _run('grad_input', grad_input, grad_input, kernel, grad_output, stride, padding, dilation)


def grad_kernel(
    grad_kernel: Tensor, grad_output: Tensor, input: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> None:
    """Writes the gradient for the kernel; all tensors must be contiguous."""
    _run('grad_kernel', grad_kernel, input, grad_kernel, grad_output, stride, padding, dilation)


def options(dtype: torch.dtype) -> tuple[str, ...]:
    """Returns the compiler's options."""
    return '-std=c++17', f'-DELEMENT={DTYPES[dtype]}'


def sizes(x: Tensor, k: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> tuple[int, ...]:
    """Returns the kernels' last arguments, all of them C's ``int``."""
    return (k.shape[1], x.shape[1], *x.shape[2:], *k.shape[2:], *stride, *padding, *dilation)


@cache
def _function(index, dtype, name):
    import cupy

    return cupy.RawModule(code=SOURCE, options=options(dtype)).get_function(name)


def _run(name, written, x, k, y, stride, padding, dilation):
    import cupy
    import numpy

    index, total = x.device.index, written.numel()
    pointers = x.data_ptr(), k.data_ptr(), y.data_ptr()
    with torch.cuda.device(index), cupy.cuda.ExternalStream(torch.cuda.current_stream(index).cuda_stream, index):
        arguments = (*pointers, numpy.int64(total), *map(numpy.int32, sizes(x, k, stride, padding, dilation)))
        _function(index, x.dtype, name)((min(-(-total // 256), 1 << 20),), (256,), arguments)
