"""The operator in CUDA, compiled by CuPy at first use: one module per specialisation, whatever the image sizes.

CuPy compiles with ``-ftz=true``: float32 values below 2^-126, and bfloat16's, count as zero, in operands and results.
float16 and float64 keep theirs.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import Pair, pytorch
from .plan import Device, Launch, Layout, Specialisation, fit, plan_launch

WRITTEN = {'forward': 2, 'grad_input': 0, 'grad_kernel': 1}  # which of a function's tensors
SMALLEST = Specialisation(torch.float32, (1, 1), (1, 1), (1, 1), wide=False)


class Stream(NamedTuple):
    """What CuPy asks of a stream; its own classes for those of others come and go."""

    ptr: int


@cache
def load() -> None:
    """Makes the backend ready: compiles and loads its smallest module, so that what cannot work fails here.

    Raises:
        RuntimeError: CuPy cannot be used, or its compiler does not match the GPU or the driver. The message says what
            to do.
    """
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


def _run(function: str, x: Tensor, k: Tensor, y: Tensor, *geometry: Pair) -> bool:
    """Returns whether it could: not where shared memory cannot hold the window of one strip of pixels."""
    if not x.numel() or not y.numel():
        (x, k, y)[WRITTEN[function]].zero_()
        return True
    x, y = fit(function, x, y)
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
    """Returns the limits of a GPU. At least two blocks share the memory of a multiprocessor."""
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
            f'{name} of involution2d has yet to be compiled for these arguments, which cannot be done while a CUDA '
            'graph is captured: call the same once before capturing'
        )
    limits = _device(index)
    try:
        function = cupy.RawModule(code=specialisation.source(name), options=specialisation.options).get_function(name)
        function.max_dynamic_shared_size_bytes = limits.shared
    except Exception as error:  # CuPy's are of several kinds
        raise RuntimeError(
            f'CuPy {cupy.__version__} cannot compile or load the CUDA kernels of involution2d ({_reason(error)}): '
            "update the driver, or install the CuPy for the driver's CUDA; backend='torch' needs neither"
        ) from error
    return function


def _reason(error: Exception) -> str:
    return str(error).strip().partition('\n')[0]
