"""The operator in CUDA. CuPy compiles a module of kernels at its first use, and images of all sizes share it.

CuPy compiles with ``-ftz=true``: float32 and bfloat16 numbers with a magnitude below 2^-126 become zero, in operands
and in results. In float16 and float64, subnormal numbers are kept.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import Pair, pytorch
from .launch import Device, Launch
from .plan import plan_launch
from .problem import Layout
from .specialisation import Specialisation

WRITTEN = {'forward': 2, 'grad_input': 0, 'grad_kernel': 1}  # the index of the result in a function's tensors (x, k, y)
SMALLEST = Specialisation(torch.float32, (1, 1), (1, 1), (1, 1), wide=False)


class Stream(NamedTuple):
    """A stream of PyTorch for CuPy, which reads only this field. CuPy's own class for it differs between releases."""

    ptr: int


@cache
def load() -> None:
    """Compiles and loads the smallest module. If that fails, raises RuntimeError with a remedy."""
    if torch.version.cuda is None:
        raise RuntimeError('the CUDA kernels need a PyTorch that is built for CUDA')
    major = torch.version.cuda.split('.')[0]
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        raise RuntimeError(
            f"the CUDA kernels need CuPy ({_reason(error)}): pip install 'cupy-cuda{major}x[ctk]'"
        ) from error
    if torch.cuda.is_available() and not torch.cuda.is_current_stream_capturing():
        _function(torch.cuda.current_device(), SMALLEST, 'forward')


def involution2d(out: Tensor, input: Tensor, kernel: Tensor, *geometry: Pair) -> None:
    """Writes eq. 4 to ``out`` (N, C, Ho, Wo)."""
    if not _run('forward', input, kernel, out, *geometry):
        pytorch.involution2d(out, input, kernel, *geometry)


def grad_input(out: Tensor, grad_output: Tensor, kernel: Tensor, *geometry: Pair) -> None:
    """Writes the gradient of the input to ``out`` (N, C, H, W)."""
    if not _run('grad_input', out, kernel, grad_output, *geometry):
        pytorch.grad_input(out, grad_output, kernel, *geometry)


def grad_kernel(out: Tensor, grad_output: Tensor, input: Tensor, *geometry: Pair) -> None:
    """Writes the gradient of the kernel to ``out`` (N, G, Kh, Kw, Ho, Wo)."""
    if not _run('grad_kernel', input, out, grad_output, *geometry):
        pytorch.grad_kernel(out, grad_output, input, *geometry)


def match_layouts(function: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns x and y both channels-last or both not: mixed layouts are slow. The tensor to write is not copied."""
    lead = x if function == 'grad_input' else y
    is_last = not lead.is_contiguous() and lead.is_contiguous(memory_format=torch.channels_last)
    axis, memory_format = (1, torch.channels_last) if is_last else (3, torch.contiguous_format)
    x, y = (
        t if t.stride(axis) == 1 or t.shape[axis] == 1 else t.contiguous(memory_format=memory_format) for t in (x, y)
    )
    return x, y


def _run(function: str, x: Tensor, k: Tensor, y: Tensor, *geometry: Pair) -> bool:
    """Runs a kernel, or returns False if shared memory cannot hold the window of one strip of pixels."""
    if not x.numel() or not y.numel():
        (x, k, y)[WRITTEN[function]].zero_()
        return True
    x, y = match_layouts(function, x, y)
    index = x.device.index
    launch = plan_launch(function, Layout.of(x), Layout.of(k), Layout.of(y), *map(tuple, geometry), _device(index))
    if launch:
        _launch(launch, index, (x, k, y))
    return launch is not None


def _launch(launch: Launch, index: int, tensors: tuple[Tensor, ...]) -> None:
    import cupy

    stream = Stream(torch.cuda.current_stream(index).cuda_stream)
    arguments = *(tensor.data_ptr() for tensor in tensors), launch.arguments
    with torch.cuda.device(index), cupy.cuda.Device(index):
        compiled = _function(index, launch.specialisation, launch.function)
        compiled((launch.grid,), (launch.block,), arguments, shared_mem=launch.shared, stream=stream)


@cache
def _device(index: int) -> Device:
    """Returns the limits of a GPU.

    A block gets at most half the shared memory of a multiprocessor, so that two blocks run there at a time, and at most
    64 KiB. If a multiprocessor has only 64 KiB, a block gets 48 KiB and runs alone.
    """
    import cupy

    gpu = cupy.cuda.Device(index)
    limits = gpu.attributes
    half = limits['MaxSharedMemoryPerMultiprocessor'] // 2 - (1 << 10)
    return Device(
        shared=max(48 << 10, min(half, 64 << 10)),
        multiprocessors=limits['MultiProcessorCount'],
        tensor_cores=int(gpu.compute_capability) >= 80,
    )


@cache
def _function(index: int, specialisation: Specialisation, name: str):
    """Compiles a kernel for the current device, which is ``index``."""
    import cupy

    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f'{name} of involution2d is not yet compiled for these arguments, and cannot be compiled while a CUDA '
            'graph is captured: call it with such arguments once before capturing'
        )
    limits = _device(index)
    try:
        function = cupy.RawModule(code=specialisation.source(name), options=specialisation.options).get_function(name)
        function.max_dynamic_shared_size_bytes = limits.shared
    except Exception as error:  # CuPy raises several types
        raise RuntimeError(
            f'CuPy {cupy.__version__} cannot compile or load the CUDA kernels of involution2d ({_reason(error)}): '
            "update the driver, or install the CuPy for the driver's CUDA; backend='torch' needs neither"
        ) from error
    return function


def _reason(error: BaseException) -> str:
    """Returns one line of an error's first cause: the line with 'error'. CuPy wraps this cause in a page of text."""
    while error.__cause__:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line for line in lines if 'error' in line.lower()), lines[0])
