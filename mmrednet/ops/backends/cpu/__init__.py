"""The operator in C++: compiled for this machine's CPU at first use, and kept in the user's cache folder.

The functions use neither Python nor torch: they take addresses, sizes and strides, in one block of integers. They run
on torch's threads, since the process has loaded torch's OpenMP runtime already. If a call names no backend, torch's
dispatcher calls them through ``operators.cpp``, without Python. This makes RedNet-26 at 32x32 with batch size 1 about
8 % faster.
"""

import ctypes
import struct
import warnings
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ...arguments import DTYPES
from .. import Pair, pytorch
from .build import compile_command, compile_library, load_library

SOURCE = Path(__file__).with_name('involution2d.cpp')
OPERATORS = SOURCE.with_name('operators.cpp')  # includes SOURCE
# The fields of `struct Arguments` in the source, and the number of 64-bit integers in each. The compiler gets their
# offsets, and rejects a source with other fields.
ARGUMENTS = {
    'threads': 1,
    'output': 1,
    'input': 1,
    'kernel': 1,
    'output_strides': 4,
    'input_strides': 4,
    'kernel_strides': 6,
    'input_shape': 4,
    'kernel_shape': 6,
    'stride': 2,
    'padding': 2,
    'dilation': 2,
    'features': 1,
    'weight': 1,
    'bias': 1,
    'reduced': 1,
    'features_strides': 4,
}
_OFFSETS = dict(zip(ARGUMENTS, accumulate(ARGUMENTS.values(), initial=0), strict=False))
FLAGS = (
    f'-DARGUMENTS={" ".join(f"FIELD({name}, {8 * offset})" for name, offset in _OFFSETS.items())}',
    f'-DARGUMENTS_SIZE={8 * sum(ARGUMENTS.values())}',
)
_PACK = struct.Struct(f'{sum(ARGUMENTS.values())}q').pack
_GIVEN = (0,) * 8  # the last five fields if the kernel is an argument and not generated


def involution2d(out: Tensor, input: Tensor, kernel: Tensor, *geometry: Pair) -> None:
    """Writes eq. 4 to ``out`` (N, C, Ho, Wo)."""
    if not _call('involution2d', out, input, kernel, kernel.shape, kernel.stride(), geometry):
        pytorch.involution2d(out, input, kernel, *geometry)


def grad_input(out: Tensor, grad_output: Tensor, kernel: Tensor, *geometry: Pair) -> None:
    """Writes the gradient of the input to ``out`` (N, C, H, W)."""
    if not _call('grad_input', grad_output, out, kernel, kernel.shape, kernel.stride(), geometry):
        pytorch.grad_input(out, grad_output, kernel, *geometry)


def grad_kernel(out: Tensor, grad_output: Tensor, input: Tensor, *geometry: Pair) -> None:
    """Writes the gradient of the kernel to ``out`` (N, G, Kh, Kw, Ho, Wo)."""
    if not _call('grad_kernel', grad_output, input, out, out.shape, out.stride(), geometry):
        pytorch.grad_kernel(out, grad_output, input, *geometry)


def fused_involution2d(
    out: Tensor,
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: Pair,
    *geometry: Pair,
) -> None:
    """Writes eq. 4 to ``out``. The 1x1 convolution generates the kernels of a few pixels right before they are used."""
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    shape = (features.shape[0], weight.shape[0] // prod(kernel_size), *kernel_size, *features.shape[2:])
    addresses = features.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr()
    generation = *addresses, features.shape[1], *features.stride()
    if not _call('involution2d', out, input, features, shape, (0,) * 6, geometry, generation):
        kernel = pytorch.generate_kernel(features, weight, bias, kernel_size)
        pytorch.involution2d(out, input, kernel, *geometry)


def _call(function: str, output, input, kernel, shape, strides, geometry, generation=_GIVEN) -> bool:
    """Calls a compiled function with a kernel of this shape and these strides.

    Returns False, without a result, if it would need far more memory than the image.
    """
    stride, padding, dilation = geometry
    arguments = _PACK(  # in the order of ARGUMENTS
        torch.get_num_threads(),
        output.data_ptr(),
        input.data_ptr(),
        kernel.data_ptr(),
        *output.stride(),
        *input.stride(),
        *strides,
        *input.shape,
        *shape,
        *stride,
        *padding,
        *dilation,
        *generation,
    )
    return load()[function, input.dtype](arguments)


@cache
def load() -> dict[tuple[str, torch.dtype], Callable[[bytes], bool]]:
    """Returns the compiled functions by name and dtype. Raises RuntimeError if they cannot be compiled or loaded."""
    library, functions = _library(), {}
    for dtype in DTYPES:
        for name in ('involution2d', 'grad_input', 'grad_kernel'):
            function = getattr(library, f'{name}_{str(dtype).removeprefix("torch.")}')
            function.argtypes, function.restype = (ctypes.c_char_p,), ctypes.c_bool
            functions[name, dtype] = function
    return functions


def register_kernels() -> None:
    """Registers the compiled functions with torch's dispatcher if ``operators.cpp`` could be compiled."""
    if register := getattr(_library(), 'register_cpu_kernels', None):
        register()


@cache
def _library() -> ctypes.CDLL:
    try:
        return load_library(OPERATORS, (*FLAGS, *_torch_flags()))
    except RuntimeError as error:
        library = load_library(SOURCE, FLAGS)
        warnings.warn(f'small calls of involution2d take longer, because they go through Python: {error}', stacklevel=2)
        return library


def _torch_flags() -> tuple[str, ...]:
    """Returns the flags that compile and link with torch's own libraries."""
    return (
        '-std=c++20',  # the headers of torch 2.14 need it
        f'-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}',
        f'-L{Path(torch.__file__).parent / "lib"}',
        '-Wl,--no-as-needed',  # the libraries are named before the source
        '-ltorch_cpu',
        '-lc10',
    )


def compile_for_onnxruntime(path: Path) -> None:
    """Writes a library that adds ``mmrednet::involution2d`` to ONNX Runtime, for this machine's CPU.

    Raises RuntimeError if no C++ compiler was found or it fails, for example without ONNX Runtime's headers.
    """
    compile_library(SOURCE.with_name('onnxruntime.cpp'), compile_command(FLAGS), path)
