"""A kernel generation function that takes a pixel's neighbours into account. It needs torch alone."""

from collections import OrderedDict

from torch import nn

from ..ops.arguments import IntPair, pair, same_padding
from ..ops.backends import Pair
from .kernel_generation import BottleneckKernelGeneration


class NeighbourhoodKernelGeneration(nn.Sequential):
    """``W1 sigma(BN(W0 D x))``: a depthwise convolution D comes before W0 of eq. 6.

    The paper generates a kernel from the features at one pixel, and leaves "more exquisite designs" to others
    (section 3). With D, the kernel depends on a neighbourhood of that pixel.

    D has the stride of the involution. The windows of D and of the involution have the same middle pixels.

    Args:
        channels (int): Channels C of the features, (N, C, H, W).
        groups, kernel_size, stride, padding, dilation: Those of the involution.
        neighbourhood (int or pair): Height and width of the window of D, in pixels. Defaults to 3.
        **bottleneck: Further arguments of :class:`BottleneckKernelGeneration`.

    Raises:
        ValueError: ``neighbourhood`` is even.
    """

    needs_all_pixels = True

    def __init__(
        self,
        channels: int,
        groups: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        neighbourhood: IntPair = 3,
        **bottleneck,
    ) -> None:
        window = pair('neighbourhood', neighbourhood, 1)
        if not all(size % 2 for size in window):
            raise ValueError(f'neighbourhood must be odd, but is {neighbourhood!r}: its middle must be a pixel')
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
        phi = BottleneckKernelGeneration(channels, groups, kernel_size, stride, padding, dilation, **bottleneck)
        super().__init__(OrderedDict([*stages.items(), *phi.named_children()]))
