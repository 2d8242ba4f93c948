"""The involution layer (Algorithm 1 of the paper). It needs torch alone."""

from collections.abc import Callable
from functools import partial
from inspect import signature

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module
from torch.overrides import has_torch_function

from ..ops import fused_involution2d, involution2d
from ..ops.arguments import IntPair, pair, same_padding
from ..ops.backends import check_backend
from .kernel_generation import (
    RELU,
    ActLayer,
    BottleneckKernelGeneration,
    LinearKernelGeneration,
    NormLayer,
    PointwiseConv,
)

CONV_FORWARD, CONV2D = nn.Conv2d.forward, F.conv2d
# Older versions of torch have no function that asks whether there are any.
GLOBAL_HOOKS = (
    module._global_forward_pre_hooks,
    module._global_forward_hooks,
    module._global_backward_pre_hooks,
    module._global_backward_hooks,
)


class Involution(nn.Module):
    """Generates a kernel for every output pixel and group from the features there, and applies it (Algorithm 1).

    Parameters are named as in the released checkpoints: ``conv1.conv``, ``conv1.bn`` and ``conv2.conv``.

    With a stride, phi sees the average over each stride x stride cell, of which the last ones may be cut off by the
    border: any height and width is allowed, and where the released models run the results are theirs. With less than
    'same' padding, an output pixel's kernel comes from the pixel in the middle of its window.

    Args:
        channels (int): Channels C of the output.
        kernel_size (int or pair): Height and width K of the window. Defaults to 7.
        stride (int or pair): Stride in pixels. Defaults to 1.
        dilation (int or pair): Distance between the window's taps in pixels. Defaults to 1.
        group_channels (int, optional): Channels C / G that share a kernel; None: all of them. Defaults to 16.
        reduction_ratio (int): ``r`` of the paper's kernel generation function. Defaults to 4.
        padding (int or pair, optional): Zero padding in pixels. Defaults to None, 'same'.
        in_channels (int, optional): Channels of the input where they are not ``channels``. Involution itself cannot mix
            channels, so a 1x1 convolution, ``projection``, then comes first. Defaults to None.
        bias (bool): Whether ``projection`` has a bias; involution has none. Defaults to False.
        norm_layer (Callable, optional): Makes the norm layer in the kernel generation function for a number of
            channels. Defaults to ``nn.BatchNorm2d``.
        act_layer (Callable, optional): Makes the activation in it. Defaults to ReLU.
        kernel_generation (Callable, optional): Makes another kernel generation function (eq. 5), which replaces the one
            that ``reduction_ratio``, ``norm_layer`` and ``act_layer`` describe: see
            :mod:`mmrednet.layers.kernel_generation`. Defaults to None.
        fused (bool, optional): Whether :func:`mmrednet.ops.fused_involution2d` applies the kernels as it generates
            them, for which the kernel generation function must end in a 1x1 convolution: True always, which in training
            saves the memory of the kernels and takes the time to generate them again; None where no gradients are
            recorded, or in evaluation mode while ``torch.jit.trace`` records. Results are the same but for rounding.
            Defaults to None.
        backend (str, optional): Backend of :func:`mmrednet.ops.involution2d`. Defaults to None, the fastest.

    Raises:
        ValueError: ``group_channels`` does not divide ``channels``, a size or ``backend`` is not possible, or ``fused``
            is True and the kernel generation function does not end in a 1x1 convolution.

    Shape:
        (N, in_channels, H, W) to (N, channels, ceil(H / stride), ceil(W / stride)) with 'same' padding.
    """

    # What a toolbox's ConvModule reads off a convolution.
    transposed = False
    output_padding = (0, 0)

    def __init__(
        self,
        channels: int,
        kernel_size: IntPair = 7,
        stride: IntPair = 1,
        dilation: IntPair = 1,
        group_channels: int | None = 16,
        reduction_ratio: int = 4,
        *,
        padding: IntPair | None = None,
        in_channels: int | None = None,
        bias: bool = False,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        act_layer: ActLayer | None = RELU,
        kernel_generation: Callable[..., nn.Module] | None = None,
        fused: bool | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_backend(backend)
        group_channels = channels if group_channels is None else group_channels
        if group_channels < 1 or channels % group_channels:
            raise ValueError(
                f'group_channels must divide the number of channels, {channels}, but is {group_channels}: '
                'set group_channels to a divisor'
            )
        self.in_channels = channels if in_channels is None else in_channels
        self.out_channels = channels
        self.kernel_size = pair('kernel_size', kernel_size, 1)
        self.stride = pair('stride', stride, 1)
        self.dilation = pair('dilation', dilation, 1)
        if padding is None:
            self.padding = same_padding(self.kernel_size, self.dilation)
        else:
            self.padding = pair('padding', padding, 0)
        # Pixels at the borders that are in the middle of no window.
        self._margin = tuple(
            d * (k - 1) - 2 * p for k, d, p in zip(self.kernel_size, self.dilation, self.padding, strict=True)
        )
        if min(self._margin) < 0:
            raise ValueError(
                f"padding must be at most 'same' (dilation * (kernel_size - 1) / 2), but is {self.padding} "
                f'with kernel_size {self.kernel_size} and dilation {self.dilation}: outside the input no kernel exists'
            )
        self.groups = channels // group_channels
        self.backend = backend

        if kernel_generation is None:
            kernel_generation = partial(
                BottleneckKernelGeneration, reduction_ratio=reduction_ratio, norm_layer=norm_layer, act_layer=act_layer
            )
        phi = kernel_generation(
            channels=channels,
            groups=self.groups,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        self._sees_pixels = getattr(phi, 'sees_pixels', False)
        # The stages of a plain sequence become the layer's own, which gives them the released checkpoints' names.
        stages = phi._modules if _is_plain_sequence(phi) else {}
        if not stages or any(name in ('projection', 'output', 'fused') or hasattr(self, name) for name in stages):
            stages = {'kernel_generation': phi}
        for name, stage in stages.items():
            self.add_module(name, stage)
        self._stages = tuple(stages)
        # Behind phi's stages: mmcv's fuse_conv_bn takes a convolution for the one before the next BatchNorm.
        self.projection = (
            nn.Identity() if self.in_channels == channels else nn.Conv2d(self.in_channels, channels, 1, bias=bias)
        )
        # A module, since mmengine's efficient_conv_bn_eval asks of which module each BatchNorm's input comes.
        self.output = nn.Identity()
        if fused and self.span() is None:
            raise ValueError(
                'fused must be None or False where the kernel generation function does not end in a plain 1x1 '
                f'convolution, but is {fused} with {type(phi).__name__}'
            )
        self.fused = fused

    def generate_kernel(self, x: Tensor) -> Tensor:
        """Returns the kernels (N, G, Kh, Kw, Ho, Wo) that the layer applies to ``x`` (N, channels, H, W).

        Raises:
            ValueError: The kernel generation function returns another shape than it should.
        """
        cells = self._cells(x)
        kernel = x if self._sees_pixels else cells
        for name in self._stages:
            kernel = self.get_submodule(name)(kernel)
        return _unflatten(kernel, cells, self.groups, self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer to ``x`` (N, in_channels, H, W)."""
        x = self.projection(x)
        geometry = self.stride, self.padding, self.dilation
        fused = self.fused
        if fused is None:
            # torch.jit.trace checks itself by tracing again without gradients: what is recorded may not depend on them.
            fused = not (self.training if torch.jit.is_tracing() else torch.is_grad_enabled())
        span = self.span() if fused and not _all_are_watched() else None
        if span is None:
            return self.output(involution2d(x, self.generate_kernel(x), *geometry, backend=self.backend))
        features = x if self._sees_pixels else self._cells(x)
        for name in self._stages[:-1]:
            features = self.get_submodule(name)(features)
        out = fused_involution2d(x, features, span.weight, span.bias, self.kernel_size, *geometry, backend=self.backend)
        return self.output(out)

    def _cells(self, x: Tensor) -> Tensor:
        """Returns one pixel for each output pixel, (N, channels, Ho, Wo)."""
        if any(self._margin):
            (top, left), (height, width) = (m // 2 for m in self._margin), x.shape[2:]
            x = x[:, :, top : height - self._margin[0] + top, left : width - self._margin[1] + left]
        if self.stride != (1, 1):
            # Cells cut off by the border count the pixels that they have.
            x = F.avg_pool2d(x, self.stride, self.stride, ceil_mode=True, count_include_pad=False)
        return x

    def span(self) -> nn.Conv2d | None:
        """Returns the 1x1 convolution in which phi ends, W1 of eq. 6, if it does and nobody has hooked into it."""
        module = self.get_submodule(self._stages[-1])
        conv = module.conv if type(module) is PointwiseConv and module.is_plain else module
        if type(conv) is not nn.Conv2d or any(map(_is_hooked, module.modules())):
            return None
        plain = conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1 and conv.padding == (0, 0)
        # A weight may be of a class that has a word in what F.conv2d does. Modes, as that of a default device, and what
        # stands for weights while torch.fx traces, have theirs in our operator.
        own_class = isinstance(conv.weight, Tensor) and has_torch_function((conv.weight,))
        return conv if plain and not (own_class and not torch._C._is_torch_function_mode_enabled()) else None

    def extra_repr(self) -> str:
        """Returns what ``print(layer)`` shows besides the children."""
        return (
            f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
            f'padding={self.padding}, dilation={self.dilation}, groups={self.groups}'
        )


@torch.fx.wrap
def _unflatten(kernel: Tensor, cells: Tensor, groups: int, kernel_size: tuple[int, int]) -> Tensor:
    """Views what phi returned for these cells as (N, G, Kh, Kw, Ho, Wo)."""
    expected = (cells.shape[0], groups * kernel_size[0] * kernel_size[1], *cells.shape[2:])
    if kernel.shape != expected:
        raise ValueError(
            f'kernel_generation must return a tensor of shape (N, G * Kh * Kw, Ho, Wo), here {tuple(expected)}, '
            f'but returned {tuple(kernel.shape)}'
        )
    # Unflattened, all sizes would be constants in what torch's former exporter to ONNX writes.
    return kernel.view(kernel.shape[0], groups, *kernel_size, *kernel.shape[2:])


def _is_plain_sequence(module: nn.Module) -> bool:
    """Whether a module is its children one after the other and nothing more: no methods, state or hook of its own."""
    if type(module) not in (nn.Sequential, BottleneckKernelGeneration, LinearKernelGeneration):
        return False
    return not (module._parameters or module._buffers or _is_hooked(module))


def _all_are_watched() -> bool:
    """Whether all modules have a hook, or all convolutions another function: these want to see W1 called."""
    return any(GLOBAL_HOOKS) or nn.Conv2d.forward is not CONV_FORWARD or F.conv2d is not CONV2D


def _is_hooked(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    # Libraries that offload or patch modules put a forward on the instance.
    return bool(hooks) or 'forward' in module.__dict__ or '_conv_forward' in module.__dict__


def in_place_of_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: IntPair,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    bias: bool = True,
    *,
    involution_kernel_size: IntPair | None = None,
    **kwargs,
) -> nn.Module:
    """Builds what takes the place of ``nn.Conv2d`` with the same arguments.

    1x1 convolutions stay convolutions: they mix channels, which involution does not. Any other becomes an
    :class:`Involution` of the same window, stride, padding and dilation. Where the channels change, a 1x1 convolution
    comes first, as in RedNet's bottleneck, where 1x1 convolutions surround the involution.

    Args:
        in_channels (int): As in :class:`torch.nn.Conv2d`, like all up to ``bias``.
        out_channels (int): Channels of the output.
        kernel_size (int or pair): Window of the convolution that is replaced.
        stride (int or pair): Stride in pixels. Defaults to 1.
        padding (int, pair or str): Zero padding in pixels, 'valid' or 'same'. Defaults to 0.
        dilation (int or pair): Distance between taps in pixels. Defaults to 1.
        groups (int): Groups of a 1x1 convolution that stays one; involution never mixes channels. Defaults to 1.
        bias (bool): Whether 1x1 convolutions have a bias; involution has none. Defaults to True.
        involution_kernel_size (int or pair, optional): Window of the involution instead of the convolution's, for the
            same output size (the paper uses 7 where convolutions are 3x3). Defaults to None.
        **kwargs: Other arguments of :class:`Involution`.

    Returns:
        nn.Module: A :class:`torch.nn.Conv2d` or an :class:`Involution`.

    Raises:
        TypeError: ``kwargs`` has what :class:`Involution` does not take.
        ValueError: ``involution_kernel_size`` cannot give the convolution's output size.
    """
    if unknown := kwargs.keys() - signature(Involution).parameters:
        raise TypeError(f'in_place_of_conv and Involution have no argument {", ".join(sorted(unknown))}: leave it away')
    kernel_size = pair('kernel_size', kernel_size, 1)
    if kernel_size == (1, 1):
        return nn.Conv2d(in_channels, out_channels, 1, stride, padding, dilation, groups, bias)  # type: ignore[arg-type]
    dilation = pair('dilation', dilation, 1)
    if padding == 'same':
        padding = same_padding(kernel_size, dilation)
    padding = pair('padding', 0 if padding == 'valid' else padding, 0)  # type: ignore[arg-type]
    if involution_kernel_size is not None:
        # A wider window with as much more padding leaves the output's size and alignment as they are.
        wider = pair('involution_kernel_size', involution_kernel_size, 1)
        extra = [d * (new - old) for new, old, d in zip(wider, kernel_size, dilation, strict=True)]
        if any(e % 2 or p + e // 2 < 0 for e, p in zip(extra, padding, strict=True)):
            raise ValueError(
                f'involution_kernel_size must give the output size of the convolution that it replaces, but {wider} '
                f'cannot take the place of {kernel_size} with padding {padding}: choose a larger one, odd where the '
                "convolution's is odd"
            )
        kernel_size, padding = wider, tuple(p + e // 2 for e, p in zip(extra, padding, strict=True))
    return Involution(
        out_channels, kernel_size, stride, dilation, padding=padding, in_channels=in_channels, bias=bias, **kwargs
    )
