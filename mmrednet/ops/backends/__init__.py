"""What computes the operators: the contract of a backend, the table of those that there are, and the choice of one."""

import warnings
from functools import cache
from importlib import import_module
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Pair = tuple[int, int]  # (vertical, horizontal)


class Backend(Protocol):
    """A module that writes results to ``out``, from arguments that were checked; ``geometry`` ends every signature.

    ``out`` is uninitialised and not empty: contiguous or channels-last, for the kernel's gradient as a 1x1 convolution
    writes it. Operands have any strides, and may lack channels: a sum over none is zero. All are of one device and
    dtype; sums of 16-bit types run in float32. A tap outside the input contributes nothing, whatever the kernel holds.

    A backend may also have ``answer_dispatcher()``, called once it is chosen where none was named: from then on it has
    kernels of its own in torch's dispatcher. ``cpu`` does, as Python takes most of a small call's time there.

    A backend that generates kernels without writing them to memory also has ``fused_involution2d(out, input, features,
    weight, bias, kernel_size, *geometry)``.
    """

    def load(self) -> object:
        """Gets ready. Raises ImportError, OSError or RuntimeError, which says what to do, where that is impossible."""

    def involution2d(self, out: Tensor, input: Tensor, kernel: Tensor, *geometry: Pair) -> None:
        """Writes eq. 4 to ``out`` (N, C, Ho, Wo), for the geometry stride, padding and dilation."""

    def grad_input(self, out: Tensor, grad_output: Tensor, kernel: Tensor, *geometry: Pair) -> None:
        """Writes the gradient of the input to ``out`` (N, C, H, W)."""

    def grad_kernel(self, out: Tensor, grad_output: Tensor, input: Tensor, *geometry: Pair) -> None:
        """Writes the gradient of the kernel to ``out`` (N, G, Kh, Kw, Ho, Wo)."""


class Row(NamedTuple):
    """Where a backend is, and the types of torch devices that it is for: none stands for all."""

    module: str
    devices: tuple[str, ...] = ()


TABLE = {  # by name, best first
    'cpu': Row('mmrednet.ops.backends.cpu', ('cpu',)),
    'cuda': Row('mmrednet.ops.backends.cuda', ('cuda',)),
    'torch': Row('mmrednet.ops.backends.pytorch'),
}
BACKENDS = ('reference', *TABLE)  # the first is what the others are held against, in autograd's own operations


def find(name: str | None, device: torch.device) -> Backend:
    """Returns the backend of a name in ``TABLE``, or for None the best that works on the device.

    Raises ValueError where there is none of the name for the device, RuntimeError where it, or each, cannot be used.
    """
    if name is not None and name not in TABLE:
        raise ValueError(f'backend must be None or one of {tuple(TABLE)}, but is {name!r}')
    if name and TABLE[name].devices and device.type not in TABLE[name].devices:
        raise ValueError(f'backend {name!r} is for {TABLE[name].devices}, but input is on {device}: leave it at None')
    return _load(name, device.type)


@cache
def _load(name: str | None, device_type: str) -> Backend:
    failures = []
    for candidate, (module, devices) in TABLE.items():
        if candidate == name or name is None and (not devices or device_type in devices):
            try:
                backend = import_module(module)
                backend.load()
            except (ImportError, OSError, RuntimeError) as error:
                failures.append(f'backend {candidate!r} of involution2d cannot be used: {error}')
                continue
            if failures:
                warnings.warn(f'{failures[0]}. Until then the slower {candidate!r} computes', stacklevel=2)
            if name is None and hasattr(backend, 'answer_dispatcher'):
                backend.answer_dispatcher()
            return backend
    raise RuntimeError(failures[0])
