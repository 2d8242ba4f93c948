"""The operator in C++: compiled for this machine's CPU at first use, and kept in the user's cache folder.

The library knows nothing of Python or torch: it takes addresses, sizes and strides, in one block of integers. It finds
torch's own OpenMP runtime loaded, and so runs on torch's threads.
"""

import ctypes
import fcntl
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from .. import Pair

SOURCE = Path(__file__).with_name('involution2d.cpp')
FLAGS = ('-std=c++17', '-O3', '-fno-math-errno', '-ffp-contract=fast', '-fopenmp', '-fPIC', '-shared', '-w')


_DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
_ARGUMENTS = struct.Struct('44q')  # `Arguments` in the source


def involution2d(out: Tensor, input: Tensor, kernel: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> None:
    """Writes eq. 4 to ``out`` (N, C, Ho, Wo)."""
    _call(0, out, input, kernel, stride, padding, dilation)


def grad_input(
    grad_input: Tensor, grad_output: Tensor, kernel: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> None:
    """Writes the gradient for ``input`` to ``grad_input`` (N, C, H, W)."""
    _call(1, grad_output, grad_input, kernel, stride, padding, dilation)


def grad_kernel(
    grad_kernel: Tensor, grad_output: Tensor, input: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> None:
    """Writes the gradient for ``kernel`` to ``grad_kernel`` (N, G, Kh, Kw, Ho, Wo)."""
    _call(2, grad_output, input, grad_kernel, stride, padding, dilation)


def fused_involution2d(
    out: Tensor,
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> None:
    """Writes eq. 4 to ``out`` for the kernel that the 1x1 convolution makes."""
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    bias_address = 0 if bias is None else bias.data_ptr()
    shape = (features.shape[0], weight.shape[0] // prod(kernel_size), *kernel_size, *features.shape[2:])
    kernel = features.new_empty(1).expand(shape)
    generation = (features.data_ptr(), weight.data_ptr(), bias_address, features.shape[1], *features.stride())
    _call(0, out, input, kernel, stride, padding, dilation, generation)


def _call(
    operation: int,
    output: Tensor,
    input: Tensor,
    kernel: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    generation: tuple[int, ...] = (0,) * 8,
) -> None:
    load()(
        _ARGUMENTS.pack(
            operation,
            _DTYPES[input.dtype],
            torch.get_num_threads(),
            output.data_ptr(),
            input.data_ptr(),
            kernel.data_ptr(),
            *output.stride(),
            *input.stride(),
            *kernel.stride(),
            *input.shape,
            *kernel.shape,
            *stride,
            *padding,
            *dilation,
            *generation,
        )
    )


@cache
def load():
    """Returns the compiled function, after compiling it where the cache folder does not hold it.

    Raises:
        RuntimeError: There is no C++ compiler, or it fails.
    """
    compiler = _compiler()
    command = [*compiler, *_flags_for(compiler), *FLAGS, f'-I{Path(torch.__file__).parent / "include"}', str(SOURCE)]
    library = _cached(command) or _compiled_for_this_process(command)
    function = library.mmrednet_involution2d
    function.argtypes, function.restype = (ctypes.c_char_p,), None
    return function


def _compiler() -> list[str]:
    named = os.environ.get('CXX', '').split()
    if named:
        if shutil.which(named[0]):
            return named
        raise RuntimeError(f'the C++ compiler that CXX names, {named[0]!r}, was not found: correct or unset CXX')
    for name in ('c++', 'g++', 'clang++'):
        if shutil.which(name):
            return [name]
    raise RuntimeError(
        'no C++ compiler was found (c++, g++ or clang++): install one, with `apt-get install g++` or '
        '`conda install gxx_linux-64` for example, or name one in the environment variable CXX'
    )


def _flags_for(compiler: list[str]) -> list[str]:
    native = _macros((*compiler, '-march=native'))
    flags = ['-march=native'] if native else []
    if '__clang__' not in (native or _macros(tuple(compiler))):
        # GCC's own: rows are short, and the loops that clear them must not become calls of memset.
        flags.append('-fno-tree-loop-distribute-patterns')
    return flags


@cache
def _macros(command: tuple[str, ...]) -> str:
    """Returns the compiler's predefined macros: its version and the CPU's features. Nothing where it fails."""
    run = subprocess.run([*command, '-dM', '-E', '-x', 'c++', os.devnull], capture_output=True, text=True)
    return run.stdout if run.returncode == 0 else ''


def _digest(command: list[str]) -> str:
    macros = _macros(tuple(flag for flag in command[:-1] if not flag.startswith('-I')))
    parts = (SOURCE.read_text(), *command[:-1], macros, torch.__version__)
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]


def _cache_folder() -> Path:
    if folder := os.environ.get('MMREDNET_CACHE_DIR'):
        return Path(folder)
    return Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')) / 'mmrednet'


def _cached(command: list[str]) -> ctypes.CDLL | None:
    """Loads the library from the cache folder; one process compiles it, the others wait. None: not writable."""
    path = _cache_folder() / f'involution2d-{_digest(command)}.so'
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix('.lock')):
                if not path.exists():
                    # Who does not see the lock, over a network file system, finds all of the file or nothing.
                    temporary = path.with_suffix(f'.{os.getpid()}')
                    _compile(command, temporary)
                    os.replace(temporary, path)
        except OSError as error:
            _say(f'mmrednet: the cache folder {path.parent} cannot be written ({error}); set MMREDNET_CACHE_DIR')
            return None
    return ctypes.CDLL(str(path))


def _compiled_for_this_process(command: list[str]) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix='mmrednet-') as folder:
        path = Path(folder, 'involution2d.so')
        _compile(command, path)
        return ctypes.CDLL(str(path))


@contextmanager
def _locked(path: Path):
    with open(path, 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(command: list[str], path: Path) -> None:
    _say(f'mmrednet: compiling the CPU kernels to {path.parent}, once for this machine (about 20 s)')
    run = subprocess.run([*command, '-o', str(path)], capture_output=True, text=True)
    if run.returncode != 0:
        lines = run.stderr.splitlines()
        reason = next((line for line in lines if 'error' in line or 'cannot find' in line), run.stderr.strip()[-200:])
        raise RuntimeError(f'the C++ compiler {command[0]!r} failed on {SOURCE.name}: {reason}')


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
