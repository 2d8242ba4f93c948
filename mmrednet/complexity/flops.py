"""FLOPs by the convention of the paper."""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..ops.flops import fused_multiply_adds, multiply_adds


def count_flops(function: Callable, *args, **kwargs) -> int:
    """Returns the FLOPs of ``function(*args, **kwargs)`` by the convention of the paper.

    FLOPs are the multiply-adds of convolutions, linear layers and involutions, one for each output of a layer with a
    bias, two for each element of a normalised tensor, and one for each output of a ReLU and each input of a pooling.
    Nothing else counts. On the meta device nothing is computed, so a large image takes no more time or memory.

    Args:
        function (Callable): A model or a function.
        *args: Its arguments.
        **kwargs: Its keyword arguments.
    """
    with torch.no_grad(), _Counter() as counter:
        function(*args, **kwargs)
    return counter.flops


class _Counter(TorchDispatchMode):
    """Counts each operator that runs below autograd, whether a function or a module calls it."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in _FLOPS:
            self.flops += _FLOPS[func.overloadpacket](args, out)
        return out


def _fused_involution(args, out) -> int:
    weight, bias, kernel_size = args[2:5]
    biases = 0 if bias is None else out.shape[0] * bias.numel() * out.shape[2:].numel()
    return fused_multiply_adds(out.shape, weight.shape, kernel_size) + biases


def _convolution(args, out) -> int:
    input, weight, bias = args[:3]
    transposed = args[6]
    # A transposed convolution multiplies each element of the input by all of its taps.
    return (input if transposed else out).numel() * weight[0].numel() + (0 if bias is None else out.numel())


_aten = torch.ops.aten
_FLOPS = {
    _aten.convolution: _convolution,
    _aten.addmm: lambda args, out: out.numel() * (args[1].shape[1] + 1),
    _aten.mm: lambda args, out: out.numel() * args[0].shape[1],
    _aten.bmm: lambda args, out: out.numel() * args[0].shape[2],
    torch.ops.mmrednet.involution2d: lambda args, out: multiply_adds(out.shape, args[1].shape[2:4]),
    torch.ops.mmrednet.window_product2d: lambda args, out: multiply_adds(args[0].shape, args[3]),
    torch.ops.mmrednet.fused_involution2d: _fused_involution,
}
_FLOPS.update(dict.fromkeys((_aten.relu, _aten.relu_), lambda args, out: out.numel()))
_NORMS = (
    _aten.native_batch_norm,
    _aten.cudnn_batch_norm,
    _aten._native_batch_norm_legit_no_training,
    _aten.native_group_norm,
    _aten.native_layer_norm,
)
_FLOPS.update(dict.fromkeys(_NORMS, lambda args, out: 2 * out[0].numel()))
# Global average pooling is a mean.
_POOLS = (
    _aten.max_pool2d_with_indices,
    _aten.avg_pool2d,
    _aten.adaptive_max_pool2d,
    _aten._adaptive_avg_pool2d,
    _aten.mean,
)
_FLOPS.update(dict.fromkeys(_POOLS, lambda args, out: args[0].numel()))
