"""The kernel generation function phi: from the features at a pixel to the involution kernels of that pixel (eq. 5).

To use another phi, write a module whose constructor takes ``(channels, groups, kernel_size, stride, padding,
dilation)``, the ints and pairs of :class:`.Involution`. Its output is the kernels as (N, groups * Kh * Kw, Ho, Wo), in
the order (G, Kh, Kw). Its input is one cell for each output pixel, (N, channels, Ho, Wo). If the module has the
attribute ``needs_all_pixels = True``, its input is all pixels, (N, channels, H, W), as self-attention needs them.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..ops.backends import Pair

NormLayer = Callable[[int], nn.Module]  # makes a norm layer for a number of channels
ActLayer = Callable[[], nn.Module]

RELU = partial(nn.ReLU, inplace=True)


class PointwiseConv(nn.Module):
    """A 1x1 convolution with a norm layer and an activation, named as in the released checkpoints: conv, bn, activate.

    The convolution has a bias if there is no norm layer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm_layer: NormLayer | None = None,
        act_layer: ActLayer | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=norm_layer is None)
        self.bn = nn.Identity() if norm_layer is None else norm_layer(out_channels)
        self.activate = nn.Identity() if act_layer is None else act_layer()
        nn.init.kaiming_normal_(self.conv.weight, mode='fan_out', nonlinearity='relu')
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``x`` (N, in_channels, H, W) to (N, out_channels, H, W)."""
        x, bn = self.conv(x), self.bn
        # A single value has no variance, so BatchNorm raises an error in training. Its running statistics are used
        # instead. SyncBatchNorm also has the values of the other processes. (Under torch.fx, x is no tensor.)
        single = bn.training and isinstance(x, Tensor) and x.numel() == x.shape[1]
        if single and isinstance(bn, _BatchNorm) and not isinstance(bn, nn.SyncBatchNorm):
            x = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        else:
            x = bn(x)
        return self.activate(x)

    @property
    def is_plain(self) -> bool:
        """Whether it is the convolution alone, without norm layer and activation."""
        return type(self.bn) is type(self.activate) is nn.Identity


class BottleneckKernelGeneration(nn.Sequential):
    """The paper's choice, ``W1 sigma(BN(W0 x))`` with 1x1 convolutions W0 and W1 (eq. 6).

    A kernel is generated from the features at one pixel, so stride, padding and dilation have no effect.

    Args:
        channels (int): Channels C of the features, (N, C, Ho, Wo).
        groups (int): Groups G of channels.
        kernel_size (tuple[int, int]): Kh and Kw.
        stride, padding, dilation (tuple[int, int]): Not used.
        reduction_ratio (int): ``r``, by which W0 reduces the channels. Defaults to 4.
        norm_layer (Callable, optional): Makes the norm layer after W0 for a number of channels. Defaults to
            ``nn.BatchNorm2d``.
        act_layer (Callable, optional): Makes the activation sigma. Defaults to ReLU.

    Raises:
        ValueError: ``reduction_ratio`` is less than 1 or more than ``channels``.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        reduction_ratio: int = 4,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        act_layer: ActLayer | None = RELU,
    ) -> None:
        if not 1 <= reduction_ratio <= channels:
            raise ValueError(
                f'reduction_ratio must be from 1 to the number of channels, {channels}, but is {reduction_ratio}'
            )
        reduced = channels // reduction_ratio
        super().__init__(
            OrderedDict(
                conv1=PointwiseConv(channels, reduced, norm_layer, act_layer),
                conv2=PointwiseConv(reduced, groups * kernel_size[0] * kernel_size[1]),
            )
        )


class LinearKernelGeneration(nn.Sequential):
    """A single 1x1 convolution W (row "W" of Table 6c). Its arguments are those of every kernel generation function."""

    def __init__(
        self, channels: int, groups: int, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
    ) -> None:
        super().__init__(OrderedDict(conv=PointwiseConv(channels, groups * kernel_size[0] * kernel_size[1])))
