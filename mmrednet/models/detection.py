"""The involution FPN and the involution heads for mmdet (section 4.2)."""

from mmdet.models.dense_heads import RPNHead
from mmdet.models.necks import FPN
from mmdet.models.roi_heads.bbox_heads import Shared4Conv1FCBBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from torch import nn

from ..registry import register_model
from .fpn import InvolutionFPNMixin
from .involution import build_involution, to_involution


class InvolutionFPN(InvolutionFPNMixin, FPN):
    """mmdet's FPN with involutions, ``type='mmrednet.InvolutionFPN'`` outside the scope of mmseg.

    Its arguments are those of :class:`mmdet.models.necks.FPN` and :class:`.fpn.InvolutionFPNMixin`.
    """


@register_model()
class InvolutionRPNHead(RPNHead):
    """RPN head whose 3x3 convolutions are involutions.

    Args:
        *args: As in :class:`mmdet.models.dense_heads.RPNHead`.
        involution_cfg (dict): Arguments of :class:`mmrednet.layers.Involution`. Defaults to ``dict()``: 7x7 windows, 16
            channels a group.
        **kwargs: As in :class:`mmdet.models.dense_heads.RPNHead`.
    """

    def __init__(self, *args, involution_cfg: dict = dict(), **kwargs) -> None:
        self.involution_cfg = involution_cfg
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        if self.num_convs <= 1:
            # mmdet applies the ReLU itself, and the released checkpoints have no Sequential here.
            self.rpn_conv = build_involution(
                channels=self.feat_channels, in_channels=self.in_channels, **self.involution_cfg
            )
        else:
            self.rpn_conv = nn.Sequential(*(to_involution(conv, self.involution_cfg) for conv in self.rpn_conv))


@register_model()
class InvolutionFCNMaskHead(FCNMaskHead):
    """Mask head whose convolutions before the upsampling are involutions.

    Args:
        *args: As in :class:`mmdet.models.roi_heads.FCNMaskHead`; ``conv_kernel_size`` is not used.
        involution_cfg (dict): Arguments of :class:`mmrednet.layers.Involution`. Defaults to ``dict()``: 7x7 windows, 16
            channels a group.
        **kwargs: As in :class:`mmdet.models.roi_heads.FCNMaskHead`.
    """

    def __init__(self, *args, involution_cfg: dict = dict(), **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for i, conv in enumerate(self.convs):
            self.convs[i] = to_involution(conv, involution_cfg)


@register_model()
class InvolutionBBoxHead(Shared4Conv1FCBBoxHead):
    """Bounding-box head of four shared involutions and one fully connected layer. The paper's models have none.

    Args:
        *args: As in :class:`mmdet.models.roi_heads.Shared4Conv1FCBBoxHead`.
        involution_cfg (dict): Arguments of :class:`mmrednet.layers.Involution`. Defaults to ``dict()``: 7x7 windows, 16
            channels a group.
        **kwargs: As in :class:`mmdet.models.roi_heads.Shared4Conv1FCBBoxHead`.
    """

    def __init__(self, *args, involution_cfg: dict = dict(), **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for i, conv in enumerate(self.shared_convs):
            self.shared_convs[i] = to_involution(conv, involution_cfg)
