"""The involution FPN (section 4.2): what it is on any toolbox's FPN, and the choice of the toolbox."""

from importlib import import_module
from importlib.util import find_spec

from mmengine.registry import DefaultScope
from torch import nn

from ..registry import register_model
from ..requirements import TOOLBOXES
from .involution import to_involution


class InvolutionFPNMixin:
    """Comes before a toolbox's FPN and makes its 3x3 output convolutions involutions; those of extra levels stay.

    Norm layers and activations that the toolbox puts behind those convolutions stay behind the involutions.

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
            # Alone it has the released checkpoints' names.
            self.fpn_convs[level] = layers[0] if len(layers) == 1 else layers


@register_model('InvolutionFPN')
def build_involution_fpn(*args, **kwargs) -> nn.Module:
    """Builds ``type='mmrednet.InvolutionFPN'`` on the FPN of the toolbox whose scope it is built in.

    Raises:
        ValueError: Nothing is known of that scope.
    """
    scope = DefaultScope.get_current_instance()
    name = None if scope is None else scope.scope_name
    toolbox: str | None
    if name in (None, 'mmengine', 'mmrednet'):
        toolbox = next((t for t, (_, scopes) in TOOLBOXES.items() if scopes and find_spec(t)), 'mmdet')
    else:
        toolbox = next((t for t, (_, scopes) in TOOLBOXES.items() if name in scopes), None)
    if toolbox is None:
        known = ', '.join(scope for _, scopes in TOOLBOXES.values() for scope in scopes)
        raise ValueError(
            f"InvolutionFPN extends a toolbox's FPN and knows the scopes {known}, but is built in {name!r}: "
            "add the one to take it from to the neck's config, _scope_='mmdet' for example"
        )
    return import_module(TOOLBOXES[toolbox].module).InvolutionFPN(*args, **kwargs)
