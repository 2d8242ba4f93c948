"""Parameters in Paddle's format (``.pdparams``), read without running what a pickle may hold.

Such a file is a pickle of a dict from names to NumPy arrays. Nothing that it names is imported or called: two classes
and two immutable types here stand for what an array needs, and any other name is refused.
"""

import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DTYPES = ('f2', 'f4', 'f8', 'i4', 'i8')
# Paddle's table from a parameter's name to its internal one.
INTERNAL_NAMES = 'StructuredToParameterName@@'


class _DType:
    """Stands for numpy.dtype, whose own state could claim that bytes are objects."""

    def __init__(self, code, *_) -> None:
        if code not in DTYPES:
            raise pickle.UnpicklingError(f'it holds an array of the type {code!r}, and may hold those of {DTYPES}')
        self.dtype = np.dtype(code)

    def __setstate__(self, state) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray and for the function that makes an empty one, which its state then fills."""

    def __init__(self, *_) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state) -> None:
        _, shape, dtype, fortran, data = state
        self.value = np.frombuffer(data, dtype.dtype).reshape(shape, order='F' if fortran else 'C')


ALLOWED = {
    # NumPy 2 renamed the module.
    ('numpy.core.multiarray', '_reconstruct'): _Array,
    ('numpy._core.multiarray', '_reconstruct'): _Array,
    ('numpy', 'ndarray'): _Array,
    ('numpy', 'dtype'): _DType,
    # How protocol 2 writes bytes: a text in Latin-1.
    ('_codecs', 'encode'): bytes,
    # How some versions of Paddle write an array with its name.
    ('__builtin__', 'tuple'): tuple,
    ('builtins', 'tuple'): tuple,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f'it names {module}.{name}, which no array needs: this could run code')
        return ALLOWED[module, name]


def read(path: str | Path) -> dict[str, Tensor]:
    """Reads the parameters by the names that the file has.

    Matrices become PyTorch's (out, in), where Paddle's linear layers have (in, out). Beside each ``_mean`` comes the
    ``num_batches_tracked`` of PyTorch's norm layers, 0, which Paddle does not count.

    Args:
        path (str or Path): The file.

    Returns:
        dict: Tensors by name, on the CPU.

    Raises:
        pickle.UnpicklingError: The file holds something else than arrays by name.
        Exception: Whatever a broken pickle raises.
    """
    with open(path, 'rb') as file:
        entries = _Unpickler(file).load()
    if not isinstance(entries, dict):
        raise pickle.UnpicklingError('it holds no dict of arrays')
    parameters: dict[str, Tensor] = {}
    for name, entry in entries.items():
        if name == INTERNAL_NAMES:
            continue
        if isinstance(entry, tuple):
            entry = entry[-1]
        if not isinstance(entry, _Array) or entry.value is None:
            raise pickle.UnpicklingError(f'its entry {name!r} is no array')
        value = entry.value.T if entry.value.ndim == 2 else entry.value
        parameters[name] = torch.from_numpy(value.astype(value.dtype.newbyteorder('='), order='C'))
        if str(name).endswith('._mean'):
            parameters[name.removesuffix('_mean') + 'num_batches_tracked'] = torch.tensor(0)
    return parameters
