"""Parameters in Paddle's format (``.pdparams``), read without running code from the file.

Such a file is a pickle of a dict from names to NumPy arrays. The unpickler here imports and calls nothing that the file
names. It has its own classes for the few names that an array needs, and it refuses all others.
"""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = ('f2', 'f4', 'f8', 'i4', 'i8')
# The name of Paddle's table from a parameter's name to its internal one.
INTERNAL_NAMES = 'StructuredToParameterName@@'


class Refused(pickle.UnpicklingError):
    """The file holds something other than arrays by name."""


class _DType:
    """Replaces numpy.dtype, whose state in a file could declare bytes to be objects."""

    def __init__(self, code, *_) -> None:
        if code not in DTYPES:
            raise Refused(f'it holds an array of the type {code!r}, and may hold those of {DTYPES}')
        self.dtype = np.dtype(code)

    def __setstate__(self, state) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Replaces numpy.ndarray, and the function that makes an empty array, which its state then fills."""

    value: np.ndarray | None = None

    def __init__(self, *_) -> None:
        pass

    def __setstate__(self, state) -> None:
        _, shape, dtype, fortran, data = state
        self.value = np.frombuffer(data, dtype.dtype).reshape(shape, order='F' if fortran else 'C')


def _encode(text: str, encoding: str) -> bytes:
    """Replaces _codecs.encode, which pickles of protocol 2 use for bytes."""
    if encoding != 'latin1':
        raise Refused(f'it holds bytes of the encoding {encoding!r}, and may hold those of latin1')
    return text.encode('latin1')


ALLOWED = {
    # NumPy 2 renamed the module.
    ('numpy.core.multiarray', '_reconstruct'): _Array,
    ('numpy._core.multiarray', '_reconstruct'): _Array,
    ('numpy', 'ndarray'): _Array,
    ('numpy', 'dtype'): _DType,
    ('_codecs', 'encode'): _encode,
    # Some versions of Paddle write an array together with its name.
    ('__builtin__', 'tuple'): tuple,
    ('builtins', 'tuple'): tuple,
}


# The unpickler in Python: the one in C reserves memory for the largest index in a file, and a few bytes can make it
# reserve 32 GB.
class _Unpickler(pickle._Unpickler):
    stack: list

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise Refused(f'it names {module}.{name}, which no array needs: this could run code')
        return ALLOWED[module, name]

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Array | _DType):
            raise Refused(f'it changes an object of class {type(self.stack[-1]).__name__}')
        self.stack[-1].__setstate__(state)

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}  # type: ignore


def read(path: Path) -> dict[str, Tensor]:
    """Reads the parameters with their names in the file. A damaged pickle raises errors of any type.

    Matrices get PyTorch's order (out, in), since Paddle's linear layers have (in, out). For each ``_mean`` there is a
    ``num_batches_tracked`` of 0, which PyTorch's norm layers have and Paddle's do not.
    """
    with open(path, 'rb') as file:
        entries = _Unpickler(file).load()
    if not isinstance(entries, dict):
        raise Refused('it holds no dict of arrays')
    entries.pop(INTERNAL_NAMES, None)
    arrays: dict[str, np.ndarray] = {}
    for name, entry in entries.items():
        entry = entry[-1] if isinstance(entry, tuple) else entry
        if not isinstance(name, str) or not isinstance(entry, _Array) or entry.value is None:
            raise Refused(f'its entry {name!r} is not an array')
        arrays[name] = entry.value.T if entry.value.ndim == 2 else entry.value
    # Each array is copied below, and thousands of names can refer to the same bytes.
    if sum(array.nbytes for array in arrays.values()) > os.path.getsize(path):
        raise Refused('its arrays are larger than the file')
    parameters: dict[str, Tensor] = {}
    for name, array in arrays.items():
        parameters[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder('='), order='C'))
        if name.endswith('._mean'):
            parameters[name.removesuffix('_mean') + 'num_batches_tracked'] = torch.tensor(0)
    return parameters
