"""Registers the operators with torch: schema, shapes, gradients (reverse and forward mode), vmap rule and autocast.

torch's public functions for this (``register_autograd``, ``register_autocast``) support neither forward-mode gradients
nor nested ``torch.func`` transforms, and cast to one fixed dtype. So this package uses private names of torch. If torch
removes one, a test names the feature that breaks. It reads this table of names, features and replacements:

- ``torch.autograd.function._SingleLevelFunction``: all gradients. Use ``torch.autograd.Function`` instead, when torch
  allows it below the dispatcher while ``torch.func`` transforms are active.
- ``torch._functorch.utils.enable_single_level_autograd_function``: ``torch.func``. Only the class above needs it.
- ``torch._C._are_functorch_transforms_active``: ``torch.func``. Without it, assume that transforms are active.
- ``torch._C._AutoDispatchBelowAutograd``: all calls. Exclude the Autograd keys with ``_ExcludeDispatchKeyGuard``.
- ``torch.autograd.forward_ad._current_level``: forward mode under ``no_grad``. Without it, never skip autograd's layer.
- ``torch.autograd.forward_ad._set_fwd_grad_enabled``: nested forward mode. No replacement.
- ``torch.autograd.Function._backward_cls._autograd_function_id``: compiled autograd. No replacement.
- ``torch._C.DispatchKey``, ``torch._C.DispatchKeySet`` and ``torch._C._ExcludeDispatchKeyGuard``: autocast. Use
  ``register_autocast`` of torch's custom operators, which fixes the dtype.
- ``torch._decomp.decomposition_table`` and ``torch._decomp.register_decomposition``: export to ONNX. Use
  ``torch.onnx.export(custom_translation_table=...)``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, library
from torch._decomp import decomposition_table
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

OPERATORS = torch.ops.mmrednet
LIBRARY = library.Library('mmrednet', 'DEF')
GEOMETRY = 'int[2] stride, int[2] padding, int[2] dilation, str? backend=None'  # the end of every schema


class Operator(_SingleLevelFunction):
    """An operator of torch's dispatcher, ``torch.ops.mmrednet.<name>``.

    A subclass defines:

    - ``schema``, and ``tensors``: the number of leading arguments that autocast casts;
    - ``compute``, which returns the result, and ``fake``, which checks the arguments and returns an uninitialised
      tensor of the same shape, dtype and memory format;
    - ``setup_context``, ``backward``, ``jvp`` and ``vmap``, as in :class:`torch.autograd.Function`.
    """

    schema: str
    tensors: int = 0
    compute: Callable[..., Tensor]
    fake: Callable[..., Tensor]
    overload: Any
    apply: Callable[..., Tensor]
    vmap: Callable[..., tuple[Tensor, int]]

    @staticmethod
    def _compiled_autograd_key(ctx) -> tuple:
        """Returns the key of this function in the cache of torch's compiled autograd."""
        return (ctx._autograd_function_id,)


def call(overload: Any, *args) -> Tensor:
    """Calls an operator. Without recorded gradients, skips autograd's layer, which takes half a small call's time."""
    # torch.onnx.export(dynamo=False) does not look up decompositions by itself.
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
        return decomposition_table[overload](*args)
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return overload(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return overload(*args)


def register(operator: type[Operator]) -> type[Operator]:
    """Registers an operator with torch's dispatcher. A decorator."""
    name = operator.schema.partition('(')[0]
    LIBRARY.define(operator.schema, tags=torch.Tag.pt2_compliant_tag)
    operator.overload = overload = getattr(OPERATORS, name).default

    def below_autograd(*args) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            if not _transforms_active():
                return overload(*args)
            # Autograd switched gradients off for the innermost level of torch.func. The outer levels need them.
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
    """Returns whether a transform of torch.func (grad, vmap, jvp, ...) is active."""
    return torch._C._are_functorch_transforms_active()


def _autocast(operator: type[Operator], device: str) -> Callable[..., Tensor]:
    # The public register_autocast casts to a fixed dtype. This casts to the dtype of the autocast region.
    below = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f'Autocast{device}'))

    def cast_and_call(*args) -> Tensor:
        tensors = cast_for_autocast(device.lower(), *args[: operator.tensors])
        with torch._C._ExcludeDispatchKeyGuard(below):
            return operator.overload(*tensors, *args[operator.tensors :])

    return cast_and_call


def cast_for_autocast(device_type: str, *tensors: Tensor | None) -> tuple:
    """Casts tensors to autocast's dtype if autocast is on. If one is float64, none is cast, as in convolutions."""
    castable = (torch.float16, torch.bfloat16, torch.float32)
    if not torch.is_autocast_enabled(device_type) or any(t is not None and t.dtype not in castable for t in tensors):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def add_tangents(*tangents: Tensor) -> Tensor:
    """Adds the parts of a forward-mode gradient, so that outer levels of torch.func can differentiate the sum."""
    with forward_ad._set_fwd_grad_enabled(True):
        return sum(tangents[1:], tangents[0])


def expand(info, dim: int | None, tensor: Tensor) -> Tensor:
    """Moves the dimension that vmap maps over to the front, or adds it if the tensor does not have it (None)."""
    return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def map_over_batch(info, dims: Sequence[int | None], tensors: Sequence[Tensor], overload: Any, *rest):
    """Applies an operator under vmap with one call: it merges the mapped dimensions (``dims``) into the batch N.

    Returns the result and its mapped dimension, 0.
    """
    moved = [expand(info, dim, tensor) for dim, tensor in zip(dims, tensors, strict=True)]
    out = call(overload, *(tensor.flatten(0, 1) for tensor in moved), *rest)
    return out.unflatten(0, moved[0].shape[:2]), 0
