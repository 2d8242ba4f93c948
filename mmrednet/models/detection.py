"""What extends mmdet: the involution FPN (section 4.2)."""

from mmdet.models.necks import FPN

from ..layers import Involution
from ..registry import MODELS


@MODELS.register_module()
class InvolutionFPN(FPN):
    """FPN whose 3x3 output convolutions are involutions; the stride-2 convolutions of extra levels stay.

    Args:
        *args: As in :class:`mmdet.models.necks.FPN`.
        involution_cfg (dict): Arguments of :class:`mmrednet.layers.Involution`. Defaults to ``dict()``: 7x7 windows, 16
            channels a group.
        **kwargs: As in :class:`mmdet.models.necks.FPN`.

    Shape:
        That of FPN: a sequence of (N, in_channels[i], H_i, W_i) to a tuple of ``num_outs`` tensors (N, out_channels, H_j, W_j).
    """

    def __init__(self, *args, involution_cfg: dict = dict(), **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for level in range(len(self.lateral_convs)):
            self.fpn_convs[level] = Involution(self.out_channels, **involution_cfg)
