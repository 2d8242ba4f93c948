"""The involution FPN for mmseg (Table 4)."""

from mmseg.models.necks import FPN

from .fpn import InvolutionFPNMixin


class InvolutionFPN(InvolutionFPNMixin, FPN):
    """mmseg's FPN with involutions, ``type='mmrednet.InvolutionFPN'`` in the scope of mmseg.

    Its arguments are those of :class:`mmseg.models.necks.FPN` and :class:`.fpn.InvolutionFPNMixin`.
    """
