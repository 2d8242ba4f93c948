"""How an operator is made known to torch: its schema, shapes, gradients in both modes, vmap rule and autocast."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, library
from torch._decomp import decomposition_table
from torch.autograd import forward_ad

# What torch.func makes of each torch.autograd.Function. The public class cannot be applied below the dispatcher while
# torch.func's transforms are at work, and register_autograd takes neither those nor forward-mode gradients.
from torch.autograd.function import _SingleLevelFunction

OPERATORS = torch.ops.mmrednet
LIBRARY = library.Library('mmrednet', 'DEF')
GEOMETRY = 'int[2] stride, int[2] padding, int[2] dilation, str? backend=None'  # ends every schema


class Operator(_SingleLevelFunction):
    """One operator of the dispatcher, ``torch.ops.mmrednet.<name>``: all that torch asks of it, side by side.

    A subclass has ``schema`` (whose first ``tensors`` arguments autocast casts), ``compute`` and ``fake`` (the result,
    and an uninitialised tensor like it), and what autograd's functions have: ``setup_context``, ``backward``, ``jvp``
    and ``vmap``.
    """

    schema: str
    tensors: int = 0
    compute: Callable[..., Tensor]
    fake: Callable[..., Tensor]
    overload: torch._ops.OpOverload
    apply: Callable[..., Tensor]
    vmap: Callable[..., tuple[Tensor, int]]

    @staticmethod
    def _compiled_autograd_key(ctx) -> tuple:
        """What torch's compiled autograd asks of every function."""
        return (ctx._autograd_function_id,)


def call(overload: torch._ops.OpOverload, *args) -> Tensor:
    """Calls an operator. Without gradients it skips autograd's layer, which takes half of a small call's time."""
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():  # with dynamo=False, which asks no table for them
        return decomposition_table[overload](*args)
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return overload(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return overload(*args)


def register(operator: type[Operator]) -> type[Operator]:
    """Gives an operator to the dispatcher; a decorator."""
    name = operator.schema.partition('(')[0]
    LIBRARY.define(operator.schema, tags=torch.Tag.pt2_compliant_tag)
    operator.overload = overload = getattr(OPERATORS, name).default

    def below_autograd(*args) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            if not _transforms_active():
                return overload(*args)
            # autograd has just switched off gradients for this level of torch.func alone, not for those around it.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return overload(*args)

    def differentiable(*args) -> Tensor:
        if not _transforms_active():
            return operator.apply(*args)
        from torch._functorch.utils import enable_single_level_autograd_function

        with enable_single_level_autograd_function():
            return operator.apply(*args)

    operator.forward = staticmethod(below_autograd)  # type: ignore[method-assign]
    LIBRARY.impl(name, operator.compute, 'CompositeExplicitAutograd')
    LIBRARY.impl(name, differentiable, 'Autograd')
    library.register_fake(f'mmrednet::{name}', operator.fake, lib=LIBRARY)
    library.register_vmap(f'mmrednet::{name}', operator.vmap, lib=LIBRARY)
    for device in ('CPU', 'CUDA', 'XPU', 'MPS'):
        if operator.tensors and hasattr(torch._C.DispatchKey, f'Autocast{device}'):
            LIBRARY.impl(name, _autocast(operator, device), f'Autocast{device}')
    return operator


def _transforms_active() -> bool:
    """Whether torch.func is at work: grad, vmap, jvp and what is made of them."""
    return torch._C._are_functorch_transforms_active()


def _autocast(operator: type[Operator], device: str) -> Callable[..., Tensor]:
    # The public register_autocast casts to one dtype for good; this is the dtype that autocast has now.
    below = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f'Autocast{device}'))

    def cast_and_call(*args) -> Tensor:
        tensors = cast_for_autocast(device.lower(), *args[: operator.tensors])
        with torch._C._ExcludeDispatchKeyGuard(below):
            return operator.overload(*tensors, *args[operator.tensors :])

    return cast_and_call


def cast_for_autocast(device_type: str, *tensors: Tensor | None) -> tuple:
    """Brings tensors to autocast's dtype where autocast is on, but for float64, which stays as in convolutions."""
    castable = (torch.float16, torch.bfloat16, torch.float32)
    if not torch.is_autocast_enabled(device_type) or any(t is not None and t.dtype not in castable for t in tensors):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def add_tangents(*tangents: Tensor) -> Tensor:
    """Adds the parts of a forward-mode gradient, as the levels of torch.func around this one see it."""
    with forward_ad._set_fwd_grad_enabled(True):
        return sum(tangents[1:], tangents[0])


def expand(info, dim: int | None, tensor: Tensor) -> Tensor:
    """Brings the dimension that vmap maps over to the front, or adds it."""
    return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def map_over_batch(info, dims: Sequence[int | None], tensors: Sequence[Tensor], overload: torch._ops.OpOverload, *rest):
    """Returns what a vmap rule returns: one call, for which the dimension that vmap maps over is part of the batch N.

    The batch is the first dimension of all ``tensors``, the operator's first arguments.
    """
    moved = [expand(info, dim, tensor) for dim, tensor in zip(dims, tensors, strict=True)]
    out = call(overload, *(tensor.flatten(0, 1) for tensor in moved), *rest)
    return out.unflatten(0, moved[0].shape[:2]), 0
