"""The involution FPN (section 4.2), on the FPN of mmdet or mmseg."""

from importlib import import_module
from importlib.util import find_spec

from mmengine.registry import DefaultScope
from torch import nn

from ..registry import register_model
from ..requirements import TOOLBOXES, require
from .involution import to_involution


class InvolutionFPNMixin:
    """Replaces the 3x3 output convolutions of a toolbox's FPN by involutions, but not those of extra levels.

    A subclass lists it before the toolbox's FPN. Norm layers and activations after the convolutions stay.

    Args:
        *args: As in the toolbox's FPN.
        involution_cfg (dict): Arguments of :class:`mmrednet.layers.Involution`. Defaults to ``dict()``: 7x7 windows, 16
            channels a group.
        **kwargs: As in the toolbox's FPN.

    Shape:
        That of FPN: a sequence of (N, in_channels[i], H_i, W_i) to a tuple of ``num_outs``
        tensors (N, out_channels, H_j, W_j).
    """

    lateral_convs: nn.ModuleList
    fpn_convs: nn.ModuleList

    def __init__(self, *args, involution_cfg: dict = dict(), **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for level in range(len(self.lateral_convs)):
            layers = to_involution(self.fpn_convs[level], involution_cfg)
            # A single layer is not put into a Sequential, as in the released checkpoints.
            self.fpn_convs[level] = layers[0] if len(layers) == 1 else layers


@register_model('InvolutionFPN')
def build_involution_fpn(*args, **kwargs) -> nn.Module:
    """Builds ``type='mmrednet.InvolutionFPN'``, which extends the FPN of mmseg or mmdet.

    In mmseg's scope it extends mmseg's FPN, and in the scopes of mmdet's family mmdet's FPN. In any other scope, such
    as mmpose's, it extends mmdet's FPN, or mmseg's FPN if mmdet is not installed.

    Raises:
        ImportError: The toolbox with that FPN is not installed.
    """
    scope = DefaultScope.get_current_instance()
    name = None if scope is None else scope.scope_name
    toolbox = next((toolbox for toolbox, (_, scopes) in TOOLBOXES.items() if name in scopes), None)
    toolbox = toolbox or next(
        (toolbox for toolbox, (_, scopes) in TOOLBOXES.items() if scopes and find_spec(toolbox)), 'mmdet'
    )
    require(toolbox)
    return import_module(TOOLBOXES[toolbox].module).InvolutionFPN(*args, **kwargs)
