"""The backends that compute the operators: their contract, their table, and how one is chosen."""

import warnings
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Pair = tuple[int, int]  # (vertical, horizontal)


class Backend(Protocol):
    """A module that computes the operators.

    A new backend is one module and one row in ``TABLE``. Each function writes its result to ``out``, an uninitialised
    tensor that is not empty and is contiguous or channels-last. In ``grad_kernel``, ``out`` is a view of such a tensor
    (N, G * Kh * Kw, Ho, Wo), with dimension 1 split into (G, Kh, Kw).

    The other arguments are checked before the call: they have the same device and the same dtype. Their strides are
    arbitrary. The number of channels may be zero, and a sum over no channels is zero. Sums of 16-bit types are
    accumulated in float32. A tap outside the input contributes nothing, whatever value the kernel has there.
    ``geometry`` stands for three pairs: stride, padding and dilation.

    Two functions are optional:

    - ``fused_involution2d(out, input, features, weight, bias, kernel_size, *geometry)`` applies the kernels that a 1x1
      convolution generates, without writing them to memory.
    - ``register_kernels()`` registers kernels of the backend in torch's dispatcher. It is called when the backend is
      chosen for a call that names no backend.
    """

    def load(self) -> object:
        """Prepares the backend. If that fails, raises ImportError, OSError or RuntimeError with a remedy."""

    def involution2d(self, out: Tensor, input: Tensor, kernel: Tensor, *geometry: Pair) -> None:
        """Writes eq. 4 to ``out`` (N, C, Ho, Wo)."""

    def grad_input(self, out: Tensor, grad_output: Tensor, kernel: Tensor, *geometry: Pair) -> None:
        """Writes the gradient of the input to ``out`` (N, C, H, W)."""

    def grad_kernel(self, out: Tensor, grad_output: Tensor, input: Tensor, *geometry: Pair) -> None:
        """Writes the gradient of the kernel to ``out`` (N, G, Kh, Kw, Ho, Wo)."""


class Row(NamedTuple):
    """The module of a backend, and the types of torch devices that it supports. No type means all devices."""

    module: str
    devices: tuple[str, ...] = ()


TABLE = {  # by name, best first
    'cpu': Row('mmrednet.ops.backends.cpu', ('cpu',)),
    'cuda': Row('mmrednet.ops.backends.cuda', ('cuda',)),
    'torch': Row('mmrednet.ops.backends.pytorch'),
}
# 'reference' is the backend that the tests compare the others with. It has no row, since autograd makes its gradients.
BACKENDS = ('reference', *TABLE)


def check_backend(name: str | None, names: Sequence[str] | None = None) -> None:
    """Raises ValueError unless ``name`` is None or in ``names``, by default 'reference' and the keys of ``TABLE``."""
    names = names or ('reference', *TABLE)
    if name is not None and name not in names:
        raise ValueError(f'backend must be None or one of {tuple(names)}, but is {name!r}')


def find(name: str | None, device: torch.device) -> Backend:
    """Returns the backend with this name in ``TABLE``, or for None the first that works on the device.

    Raises ValueError if no backend has this name or it does not support the device, and RuntimeError if it cannot be
    used on this machine.
    """
    check_backend(name, tuple(TABLE))
    if name and TABLE[name].devices and device.type not in TABLE[name].devices:
        raise ValueError(f'backend {name!r} is for {TABLE[name].devices}, but input is on {device}: leave it at None')
    return _load(name, device.type)


def explain(device: torch.device) -> tuple[str, list[tuple[str, str]]]:
    """Returns the name of the backend that None selects, and for each name in ``TABLE`` why it is selected or not."""
    chosen, rows = '', []
    for name in TABLE:
        try:
            find(name, device)
            reason = f'works, but {chosen!r} comes first' if chosen else 'is used: the first that works'
            chosen = chosen or name
        except ValueError:
            reason = f'is for tensors on {" and ".join(TABLE[name].devices)}'
        except RuntimeError as error:
            reason = ' '.join(str(error).split())
        rows.append((name, reason))
    return chosen, rows


@cache
def _load(name: str | None, device_type: str) -> Backend:
    failures: list[tuple[str, Exception]] = []
    for candidate, (module, devices) in TABLE.items():
        if candidate == name or name is None and (not devices or device_type in devices):
            try:
                backend = import_module(module)
                backend.load()
            except (ImportError, OSError, RuntimeError) as error:
                failures.append((f'backend {candidate!r} of involution2d cannot be used: {error}', error))
                continue
            if failures:
                warnings.warn(f'{failures[0][0]}. The slower backend {candidate!r} is used instead', stacklevel=2)
            if name is None and hasattr(backend, 'register_kernels'):
                backend.register_kernels()
            return backend
    text, cause = failures[0]
    raise RuntimeError(text) from cause
