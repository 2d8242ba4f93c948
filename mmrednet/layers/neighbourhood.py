"""A kernel generation function that takes a pixel's neighbours into account. It needs torch alone."""

from collections import OrderedDict

from torch import nn

from ..ops.arguments import IntPair, pair, same_padding
from ..ops.backends import Pair
from .kernel_generation import RELU, ActLayer, BottleneckKernelGeneration, NormLayer


class NeighbourhoodKernelGeneration(nn.Sequential):
    """``W1 sigma(BN(W0 D x))``: a depthwise convolution D comes before W0 of eq. 6.

    The paper generates a kernel from the features at one pixel, and leaves "more exquisite designs" to others
    (section 3). With D, the kernel depends on a neighbourhood of that pixel.

    Args:
        channels (int): Channels C of the features.
        groups (int): Groups G of channels.
        kernel_size (tuple[int, int]): Kh and Kw of the involution.
        stride (tuple[int, int]): Stride in pixels, which D has.
        padding (tuple[int, int]): Padding of the involution in pixels.
        dilation (tuple[int, int]): Dilation of the involution in pixels.
        neighbourhood (int or pair): Height and width of the window of D. Defaults to 3.
        reduction_ratio (int): ``r``, by which W0 reduces the channels. Defaults to 4.
        norm_layer (Callable, optional): Makes the norm layer after W0. Defaults to ``nn.BatchNorm2d``.
        act_layer (Callable, optional): Makes the activation sigma. Defaults to ReLU.

    Raises:
        ValueError: ``neighbourhood`` is even, or ``reduction_ratio`` leaves no channel.
    """

    sees_pixels = True

    def __init__(
        self,
        channels: int,
        groups: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        neighbourhood: IntPair = 3,
        reduction_ratio: int = 4,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        act_layer: ActLayer | None = RELU,
    ) -> None:
        window = pair('neighbourhood', neighbourhood, 1)
        if not all(size % 2 for size in window):
            raise ValueError(f'neighbourhood must be odd, but is {neighbourhood!r}: a pixel has to be in its middle')
        # The windows of D have the same middles as those of the involution.
        pads = [
            size // 2 + pad - middle
            for size, pad, middle in zip(window, padding, same_padding(kernel_size, dilation), strict=True)
        ]
        top, left = (min(pad, 0) for pad in pads)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        if top or left:
            stages['crop'] = nn.ZeroPad2d((left, left, top, top))  # negative: the margin is cut off
        stages['depthwise'] = nn.Conv2d(
            channels, channels, window, stride, (max(pads[0], 0), max(pads[1], 0)), groups=channels, bias=False
        )
        bottleneck = BottleneckKernelGeneration(
            channels, groups, kernel_size, stride, padding, dilation, reduction_ratio, norm_layer, act_layer
        )
        super().__init__(OrderedDict([*stages.items(), *bottleneck.named_children()]))
