"""The involution layer (Algorithm 1 of the paper)."""

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from ..ops import fused_involution2d, involution2d
from ..ops.arguments import IntPair, pair, same_padding
from ..registry import MODELS


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
        norm_cfg (dict, optional): Norm layer in the kernel generation function. Defaults to ``dict(type='BN')``.
        act_cfg (dict, optional): Activation in it. Defaults to ``dict(type='ReLU')``.
        kernel_generation (dict, optional): Config of another kernel generation function (eq. 5), which replaces the one
            that ``reduction_ratio``, ``norm_cfg`` and ``act_cfg`` describe: see
            :mod:`mmrednet.layers.kernel_generation`.
        fused (bool, optional): Whether :func:`mmrednet.ops.fused_involution2d` applies the kernels as it generates
            them, for which the kernel generation function must end in a 1x1 convolution: True always, which in training
            saves the memory of the kernels and takes the time to generate them again; None where no gradients are
            recorded. Results are the same but for rounding. Defaults to None.
        backend (str, optional): Backend of :func:`mmrednet.ops.involution2d`. Defaults to None, the fastest.

    Raises:
        ValueError: ``group_channels`` does not divide ``channels``, a size is not possible, or ``fused`` is True and
            the kernel generation function does not end in a 1x1 convolution.

    Shape:
        (N, in_channels, H, W) to (N, channels, ceil(H / stride), ceil(W / stride)) with 'same' padding.
    """

    # What ConvModule reads off a convolution.
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
        norm_cfg: dict | None = dict(type='BN'),
        act_cfg: dict | None = dict(type='ReLU'),
        kernel_generation: dict | None = None,
        fused: bool | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
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

        self.projection = (
            nn.Identity() if self.in_channels == channels else nn.Conv2d(self.in_channels, channels, 1, bias=bias)
        )
        kernel_channels = self.groups * self.kernel_size[0] * self.kernel_size[1]
        if kernel_generation is None:
            kernel_generation = dict(
                type='mmrednet.BottleneckKernelGeneration',
                reduction_ratio=reduction_ratio,
                norm_cfg=norm_cfg,
                act_cfg=act_cfg,
            )
        phi = MODELS.build({'channels': channels, 'kernel_channels': kernel_channels, **kernel_generation})
        # The stages of a sequence become the layer's own, which gives them the released checkpoints' names.
        stages = dict(phi.named_children()) if isinstance(phi, nn.Sequential) else {'kernel_generation': phi}
        for name, stage in stages.items():
            self.add_module(name, stage)
        self._stages = tuple(stages)
        if fused and self.span() is None:
            raise ValueError(
                'fused must be None or False where the kernel generation function does not end in a ConvModule that is '
                f'a 1x1 convolution and nothing else, but is {fused} with {type(phi).__name__}'
            )
        self.fused = fused

    def generate_kernel(self, x: Tensor) -> Tensor:
        """Returns the kernels (N, G, Kh, Kw, Ho, Wo) that the layer applies to ``x`` (N, channels, H, W).

        Raises:
            ValueError: The kernel generation function returns another shape than it should.
        """
        x = self._cells(x)
        expected = (x.shape[0], self.groups * self.kernel_size[0] * self.kernel_size[1], *x.shape[2:])
        for name in self._stages:
            x = self.get_submodule(name)(x)
        if x.shape != expected:
            raise ValueError(
                f'kernel_generation must return a tensor of shape (N, G * Kh * Kw, Ho, Wo), here {tuple(expected)}, '
                f'but returned {tuple(x.shape)}'
            )
        return x.unflatten(1, (self.groups, *self.kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer to ``x`` (N, in_channels, H, W)."""
        x = self.projection(x)
        geometry = self.stride, self.padding, self.dilation
        fused = not torch.is_grad_enabled() if self.fused is None else self.fused
        span = self.span() if fused else None
        if span is None:
            return involution2d(x, self.generate_kernel(x), *geometry, backend=self.backend)
        features = self._cells(x)
        for name in self._stages[:-1]:
            features = self.get_submodule(name)(features)
        return fused_involution2d(
            x, features, span.weight, span.bias, self.kernel_size, *geometry, backend=self.backend
        )

    def _cells(self, x: Tensor) -> Tensor:
        """Returns what phi sees (N, channels, Ho, Wo): one pixel for each output pixel."""
        (top, left), (height, width) = (m // 2 for m in self._margin), x.shape[2:]
        if any(self._margin):
            x = x[:, :, top : height - self._margin[0] + top, left : width - self._margin[1] + left]
        if self.stride != (1, 1):
            # Cells cut off by the border count the pixels that they have.
            x = F.avg_pool2d(x, self.stride, self.stride, ceil_mode=True, count_include_pad=False)
        return x

    def span(self) -> nn.Conv2d | None:
        """Returns the 1x1 convolution in which phi ends, W1 of eq. 6, if it does and nobody has hooked into it."""
        module = self.get_submodule(self._stages[-1])
        if not isinstance(module, ConvModule) or module.with_norm or module.with_activation:
            return None
        conv = module.conv
        plain = type(conv) is nn.Conv2d and conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (module, conv))
        return conv if plain and not hooked and conv.padding == (0, 0) else None

    def extra_repr(self) -> str:
        """Returns what ``print(layer)`` shows besides the children."""
        return (
            f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
            f'padding={self.padding}, dilation={self.dilation}, groups={self.groups}'
        )


@MODELS.register_module(name='Involution')
def build_involution(*args, channels: int | None = None, **kwargs) -> nn.Module:
    """Builds ``type='mmrednet.Involution'``.

    With ``channels`` that is an :class:`Involution`. Without, the arguments are those of :class:`torch.nn.Conv2d`, with
    which the toolboxes build a ``conv_cfg``: see :func:`build_conv_layer`.
    """
    return build_conv_layer(*args, **kwargs) if channels is None else Involution(channels, *args, **kwargs)


def build_conv_layer(
    in_channels: int,
    out_channels: int,
    kernel_size: IntPair,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    bias: bool = True,
    *,
    involution_kernel_size: IntPair | None = None,
    **kwargs,
) -> nn.Module:
    """Builds what ``conv_cfg=dict(type='mmrednet.Involution', ...)`` puts in the place of a convolution.

    1x1 convolutions stay convolutions: they mix channels, which involution does not. Any other becomes an
    :class:`Involution` of the same window, stride, padding and dilation. Where the channels change, a 1x1 convolution
    comes first, as in RedNet's bottleneck, where 1x1 convolutions surround the involution.

    Args:
        in_channels (int): As in :class:`torch.nn.Conv2d`, like all up to ``bias``.
        out_channels (int): Channels of the output.
        kernel_size (int or pair): Window of the convolution that is replaced.
        stride (int or pair): Stride in pixels. Defaults to 1.
        padding (int or pair): Zero padding in pixels. Defaults to 0.
        dilation (int or pair): Distance between taps in pixels. Defaults to 1.
        groups (int): Groups of a 1x1 convolution that stays one; involution never mixes channels. Defaults to 1.
        bias (bool): Whether 1x1 convolutions have a bias; involution has none. Defaults to True.
        involution_kernel_size (int or pair, optional): Window of the involution instead of the convolution's, for the
            same output size (the paper uses 7 where convolutions are 3x3). Defaults to None.
        **kwargs: Other arguments of :class:`Involution`.

    Returns:
        nn.Module: A :class:`torch.nn.Conv2d` or an :class:`Involution`.
    """
    kernel_size = pair('kernel_size', kernel_size, 1)
    if kernel_size == (1, 1):
        return nn.Conv2d(in_channels, out_channels, 1, stride, padding, dilation, groups, bias)
    padding, dilation = pair('padding', padding, 0), pair('dilation', dilation, 1)
    if involution_kernel_size is not None:
        # A wider window with as much more padding leaves the output's size and alignment as they are.
        wider = pair('involution_kernel_size', involution_kernel_size, 1)
        extra = [d * (new - old) for new, old, d in zip(wider, kernel_size, dilation, strict=True)]
        if any(e % 2 or p + e // 2 < 0 for e, p in zip(extra, padding, strict=True)):
            raise ValueError(
                f'involution_kernel_size must give the output size of the convolution that it replaces, but {wider} '
                f'cannot take the place of {kernel_size} with padding {padding}: choose sizes both odd or both even'
            )
        kernel_size, padding = wider, tuple(p + e // 2 for e, p in zip(extra, padding, strict=True))
    return Involution(
        out_channels, kernel_size, stride, dilation, padding=padding, in_channels=in_channels, bias=bias, **kwargs
    )
