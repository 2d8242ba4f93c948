"""The involution layer (Algorithm 1 of the paper). It needs torch alone."""

from collections.abc import Callable
from functools import partial
from inspect import signature

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import fused_involution2d, involution2d
from ..ops.arguments import IntPair, pair, same_padding, to_pairs
from ..ops.backends import check_backend
from .kernel_generation import (
    RELU,
    ActLayer,
    BottleneckKernelGeneration,
    LinearKernelGeneration,
    NormLayer,
    PointwiseConv,
)
from .neighbourhood import NeighbourhoodKernelGeneration

PLAIN_SEQUENCES = nn.Sequential, BottleneckKernelGeneration, LinearKernelGeneration, NeighbourhoodKernelGeneration


class Involution(nn.Module):
    """Generates a kernel for every output pixel and group from the features there, and applies it (Algorithm 1).

    Parameters are named as in the released checkpoints: ``conv1.conv``, ``conv1.bn`` and ``conv2.conv``.

    With a stride, the input of the kernel generation function phi is the average over each stride x stride cell. Any
    height and width is allowed: a cell at the border is the average of the pixels that it has. If the stride divides
    height and width, the results equal those of the released models. With less than 'same' padding, the kernel of an
    output pixel is generated from the pixel in the middle of its window.

    Args:
        channels (int): Channels C of the output.
        kernel_size (int or pair): Height and width K of the window. Defaults to 7.
        stride (int or pair): Stride in pixels. Defaults to 1.
        dilation (int or pair): Distance between the window's taps in pixels. Defaults to 1.
        group_channels (int, optional): Number of channels C / G that share a kernel, or None: all channels share one.
            Defaults to 16.
        reduction_ratio (int): ``r`` of the paper's kernel generation function. Defaults to 4.
        padding (int or pair, optional): Zero padding in pixels. Defaults to None, 'same'.
        in_channels (int, optional): Channels of the input if they differ from ``channels``. A 1x1 convolution,
            ``projection``, then changes the number of channels first, since involution cannot. Defaults to None.
        bias (bool): Whether ``projection`` has a bias. Involution has none. Defaults to False.
        norm_layer (Callable, optional): Makes the norm layer in the kernel generation function for a number of
            channels. Defaults to ``nn.BatchNorm2d``.
        act_layer (Callable, optional): Makes the activation in it. Defaults to ReLU.
        kernel_generation (Callable, optional): Makes another kernel generation function (eq. 5), which replaces the one
            that ``reduction_ratio``, ``norm_layer`` and ``act_layer`` describe: see
            :mod:`mmrednet.layers.kernel_generation`. Defaults to None.
        fused (bool, optional): Whether :func:`mmrednet.ops.fused_involution2d` generates and applies the kernels in one
            operator. The results differ by rounding only. True: always. In training this saves the memory of the
            kernels, and the backward pass generates them a second time. False: never. None: only if no gradients are
            recorded, and under ``torch.jit.trace`` in evaluation mode. Defaults to None.

            The fused operator does not call the last 1x1 convolution of the kernel generation function as a module. The
            layer is therefore not fused if that convolution has a hook, its own ``forward``, a parametrization or a
            weight of a class with ``__torch_function__``. The layer does not detect hooks on all modules, nor a
            replaced ``nn.Conv2d.forward`` or ``F.conv2d``: set ``fused=False`` for these.
        backend (str, optional): Backend of :func:`mmrednet.ops.involution2d`. Defaults to None, the fastest.

    Raises:
        ValueError: ``group_channels`` does not divide ``channels``; a size or ``backend`` is not valid; or ``fused`` is
            True and the kernel generation function does not end in a 1x1 convolution.

    Shape:
        (N, in_channels, H, W) to (N, channels, ceil(H / stride), ceil(W / stride)) with 'same' padding.
    """

    # A toolbox's ConvModule reads these attributes of a convolution.
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
        self.stride, self.padding, self.dilation = to_pairs(self.kernel_size, stride, padding, dilation)
        self._margin = self._measure_margin()
        self.groups = channels // group_channels
        self.backend = backend

        if kernel_generation is None:
            kernel_generation = partial(
                BottleneckKernelGeneration, reduction_ratio=reduction_ratio, norm_layer=norm_layer, act_layer=act_layer
            )
        window = dict(kernel_size=self.kernel_size, stride=self.stride, padding=self.padding, dilation=self.dilation)
        phi = kernel_generation(channels=channels, groups=self.groups, **window)
        self._needs_all_pixels = getattr(phi, 'needs_all_pixels', False)
        self._add_stages(phi)
        # Added after phi's stages: mmcv's fuse_conv_bn merges each convolution with the next BatchNorm in this order.
        self.projection = (
            nn.Identity() if self.in_channels == channels else nn.Conv2d(self.in_channels, channels, 1, bias=bias)
        )
        # mmengine's efficient_conv_bn_eval needs a module whose output is the input of the next BatchNorm.
        self.output = nn.Identity()
        if fused and self.last_convolution() is None:
            raise ValueError(
                'fused must be None or False if the kernel generation function does not end in a plain 1x1 '
                f'convolution, but is {fused} with {type(phi).__name__}'
            )
        self.fused = fused

    def _measure_margin(self) -> tuple[int, ...]:
        """Returns the number of rows and columns at the borders that are not the middle of a window."""
        margin = tuple(
            d * (k - 1) - 2 * p for k, d, p in zip(self.kernel_size, self.dilation, self.padding, strict=True)
        )
        if min(margin) < 0:
            raise ValueError(
                f"padding must be at most 'same' (dilation * (kernel_size - 1) / 2), but is {self.padding} "
                f'with kernel_size {self.kernel_size} and dilation {self.dilation}: no kernel exists outside the input'
            )
        return margin

    def _add_stages(self, phi: nn.Module) -> None:
        # The stages of a plain sequence become children of the layer, as the names in the released checkpoints require.
        stages = phi._modules if _is_plain_sequence(phi) else {}
        if not stages or any(name in ('projection', 'output', 'fused') or hasattr(self, name) for name in stages):
            stages = {'kernel_generation': phi}
        for name, stage in stages.items():
            self.add_module(name, stage)
        self._stages = tuple(stages)

    def generate_kernel(self, x: Tensor) -> Tensor:
        """Returns the kernels (N, G, Kh, Kw, Ho, Wo) that the layer applies to ``x`` (N, channels, H, W).

        Raises ValueError if the kernel generation function returns a tensor of another shape.
        """
        cells = self._cells(x)
        kernel = x if self._needs_all_pixels else cells
        for name in self._stages:
            kernel = self.get_submodule(name)(kernel)
        return _unflatten(kernel, cells, self.groups, self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer to ``x`` (N, in_channels, H, W)."""
        x = self.projection(x)
        geometry = self.stride, self.padding, self.dilation
        fused = self.fused
        if fused is None:
            # torch.jit.trace checks its result by tracing again without gradients: both must record the same operators.
            fused = not (self.training if torch.jit.is_tracing() else torch.is_grad_enabled())
        conv = self.last_convolution() if fused else None
        if conv is None:
            return self.output(involution2d(x, self.generate_kernel(x), *geometry, backend=self.backend))
        features = x if self._needs_all_pixels else self._cells(x)
        for name in self._stages[:-1]:
            features = self.get_submodule(name)(features)
        out = fused_involution2d(x, features, conv.weight, conv.bias, self.kernel_size, *geometry, backend=self.backend)
        return self.output(out)

    def _cells(self, x: Tensor) -> Tensor:
        """Returns one pixel for each output pixel, (N, channels, Ho, Wo)."""
        if any(self._margin):
            (top, left), (height, width) = (m // 2 for m in self._margin), x.shape[2:]
            x = x[:, :, top : height - self._margin[0] + top, left : width - self._margin[1] + left]
        if self.stride != (1, 1):
            # A cell that the border cuts off is the average of the pixels that it has.
            x = F.avg_pool2d(x, self.stride, self.stride, ceil_mode=True, count_include_pad=False)
        return x

    def last_convolution(self) -> nn.Conv2d | None:
        """Returns the 1x1 convolution at the end of phi (W1 of eq. 6) if the fused operator can replace it."""
        stage = self.get_submodule(self._stages[-1])
        conv = stage.conv if type(stage) is PointwiseConv and stage.is_plain else stage
        # A parametrization also changes the type of the module.
        if type(conv) is not nn.Conv2d or any(map(_is_changed, stage.modules())) or not _is_plain_tensor(conv.weight):
            return None
        is_1x1 = conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1 and conv.padding == (0, 0)
        return conv if is_1x1 else None

    def extra_repr(self) -> str:
        """Returns what ``print(layer)`` shows besides the children."""
        return (
            f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
            f'padding={self.padding}, dilation={self.dilation}, groups={self.groups}'
        )


@torch.fx.wrap
def _unflatten(kernel: Tensor, cells: Tensor, groups: int, kernel_size: tuple[int, int]) -> Tensor:
    """Returns a view of phi's output for these cells as (N, G, Kh, Kw, Ho, Wo)."""
    expected = (cells.shape[0], groups * kernel_size[0] * kernel_size[1], *cells.shape[2:])
    if kernel.shape != expected:
        raise ValueError(
            f'kernel_generation must return a tensor of shape (N, G * Kh * Kw, Ho, Wo), here {tuple(expected)}, '
            f'but returned {tuple(kernel.shape)}'
        )
    # `unflatten` would make all sizes constants in the files of torch's older ONNX exporter.
    return kernel.view(kernel.shape[0], groups, *kernel_size, *kernel.shape[2:])


def _is_plain_sequence(module: nn.Module) -> bool:
    """Returns whether calling a module is the same as calling its children one after the other."""
    if type(module) not in PLAIN_SEQUENCES:
        return False
    return not (module._parameters or module._buffers or _is_changed(module))


def _is_changed(module: nn.Module) -> bool:
    """Returns whether a module has hooks or its own ``forward``, as libraries for offloading and patching add them."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or 'forward' in module.__dict__ or '_conv_forward' in module.__dict__


def _is_plain_tensor(weight: Tensor) -> bool:
    """Returns whether torch's functions treat a weight as an ordinary tensor.

    A class with its own ``__torch_function__``, such as a quantised weight, may change the result of ``F.conv2d``.
    """
    return type(weight) is Tensor or type(weight).__torch_function__ is nn.Parameter.__torch_function__


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
    """Builds the module that replaces an ``nn.Conv2d`` with the same arguments.

    A 1x1 convolution stays one, since involution cannot mix channels. Any other becomes an :class:`Involution` of the
    same geometry. If the number of channels changes, a 1x1 convolution comes first.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int or pair): Window of the convolution.
        stride (int or pair): Stride in pixels. Defaults to 1.
        padding (int, pair or str): Zero padding in pixels, 'valid' or 'same'. Defaults to 0.
        dilation (int or pair): Distance between taps in pixels. Defaults to 1.
        groups (int): Groups of a 1x1 convolution. Defaults to 1.
        bias (bool): Whether a 1x1 convolution has a bias. Defaults to True.
        involution_kernel_size (int or pair, optional): Window of the involution, with the padding for the same output
            size. The paper replaces 3x3 convolutions by 7x7 involutions. Defaults to None, ``kernel_size``.
        **kwargs: Other arguments of :class:`Involution`.

    Returns:
        nn.Module: A :class:`torch.nn.Conv2d` or an :class:`Involution`.

    Raises:
        TypeError: :class:`Involution` has no argument with a name in ``kwargs``.
        ValueError: No padding gives the convolution's output size with ``involution_kernel_size``.
    """
    if unknown := kwargs.keys() - signature(Involution).parameters:
        raise TypeError(f'in_place_of_conv and Involution have no argument {", ".join(sorted(unknown))}: leave it out')
    kernel_size = pair('kernel_size', kernel_size, 1)
    if kernel_size == (1, 1):
        return nn.Conv2d(in_channels, out_channels, 1, stride, padding, dilation, groups, bias)  # type: ignore[arg-type]
    dilation = pair('dilation', dilation, 1)
    if padding == 'same':
        padding = same_padding(kernel_size, dilation)
    padding = pair('padding', 0 if padding == 'valid' else padding, 0)  # type: ignore[arg-type]
    if involution_kernel_size is not None:
        # A wider window with wider padding keeps the output's size and alignment.
        wider = pair('involution_kernel_size', involution_kernel_size, 1)
        extra = [d * (new - old) for new, old, d in zip(wider, kernel_size, dilation, strict=True)]
        if any(e % 2 or p + e // 2 < 0 for e, p in zip(extra, padding, strict=True)):
            raise ValueError(
                f'involution_kernel_size must give the same output size as the convolution, but {wider} cannot take '
                f'the place of {kernel_size} with padding {padding}: choose a larger size, odd if kernel_size is odd'
            )
        kernel_size, padding = wider, tuple(p + e // 2 for e, p in zip(extra, padding, strict=True))
    return Involution(
        out_channels, kernel_size, stride, dilation, padding=padding, in_channels=in_channels, bias=bias, **kwargs
    )
