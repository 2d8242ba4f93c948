"""The involution FPN (section 4.2): what mmdet's and mmseg's have in common, and the choice between them."""

from importlib import import_module
from importlib.util import find_spec

from mmengine.registry import DefaultScope
from torch import nn

from ..layers import Involution
from ..registry import MODELS


class InvolutionFPNMixin:
    """Comes before a toolbox's FPN and makes its 3x3 output convolutions involutions; those of extra levels stay.

    Args:
        *args: As in the toolbox's FPN.
        involution_cfg (dict): Arguments of :class:`mmrednet.layers.Involution`. Defaults to ``dict()``: 7x7 windows, 16
            channels a group.
        **kwargs: As in the toolbox's FPN.

    Shape:
        That of FPN: a sequence of (N, in_channels[i], H_i, W_i) to a tuple of ``num_outs``
        tensors (N, out_channels, H_j, W_j).
    """

    def __init__(self, *args, involution_cfg: dict = dict(), **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for level in range(len(self.lateral_convs)):
            self.fpn_convs[level] = Involution(self.out_channels, **involution_cfg)


@MODELS.register_module(name='InvolutionFPN')
def build_involution_fpn(*args, **kwargs) -> nn.Module:
    """Builds ``type='mmrednet.InvolutionFPN'``: on mmseg's FPN in the scope of mmseg, else on mmdet's."""
    scope = DefaultScope.get_current_instance()
    if scope is None or scope.scope_name not in ('mmdet', 'mmseg'):
        toolbox = 'mmdet' if find_spec('mmdet') is not None else 'mmseg'
    else:
        toolbox = scope.scope_name
    module = import_module({'mmdet': '.detection', 'mmseg': '.segmentation'}[toolbox], __package__)
    return module.InvolutionFPN(*args, **kwargs)
