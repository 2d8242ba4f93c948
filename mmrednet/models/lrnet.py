"""LR-Net (Hu et al., ICCV 2019), which the paper compares RedNet with in Table 1."""

from functools import partial

from mmcv.cnn import ConvModule, build_norm_layer
from torch import nn

from ..layers import LocalAttention, LocalRelationKernelGeneration
from ..registry import register_model
from .backbone import ResNetBackbone

GROUP_CHANNELS = 8  # channels that share a kernel


@register_model()
class LRNet(ResNetBackbone):
    """LR-Net-26, 50 and 101, ResNet with local relation layers in the place of its 3x3 convolutions.

    The kernels are those of :class:`mmrednet.layers.LocalRelationKernelGeneration`, and a 1x1 convolution follows the
    aggregation. Eight channels share a kernel. The last group has fewer channels if eight does not divide them.

    The authors published the operator but no network. This one follows the paper's description. With the default
    ``base_channels`` its parameters are those that the paper prints for depth 50. 101 and 103 fit depths 26 and 101.

    Args:
        depth (int): 26, 50 or 101. LR-Net-26 has two blocks in each stage, unlike the other networks with 26 layers.
        in_channels (int): Channels of the image. Defaults to 3.
        stem_channels (int): Channels of the stem: a 1x1 convolution and a local relation layer. Defaults to 64.
        base_channels (int): Channels of the local relation in the first stage. Defaults to 100.
        out_channels (int): Channels of the first stage's output. Defaults to 256.
        kernel_size (int): Window of the local relation, an odd number. Defaults to 7.
        similarity (str): As in :class:`mmrednet.layers.LocalRelationKernelGeneration`. Defaults to 'difference'.
        norm_cfg (dict): Norm layers. Defaults to ``dict(type='BN', requires_grad=True)``.
        with_cp (bool): Whether blocks recompute activations in the backward pass, for less memory. Defaults to False.
        backend (str, optional): Backend of :func:`mmrednet.ops.involution2d`. Defaults to None, the fastest.
        **kwargs: As in :class:`.backbone.ResNetBackbone`.

    Raises:
        TypeError: There is no argument of that name.
        ValueError: An argument is out of its range.

    Shape:
        (N, in_channels, H, W) to a tuple of (N, C_i, H_i, W_i), where ``C_i = out_channels * 2^i`` and, with the
        default strides, ``H_i = ceil(H / 2^(i + 2))``.
    """

    arch_settings = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        stem_channels: int = 64,
        base_channels: int = 100,
        out_channels: int = 256,
        kernel_size: int = 7,
        similarity: str = 'difference',
        norm_cfg: dict = dict(type='BN', requires_grad=True),
        with_cp: bool = False,
        backend: str | None = None,
        **kwargs,
    ) -> None:
        super().__init__(depth, **kwargs)
        spatial = partial(make_local_relation, kernel_size=kernel_size, similarity=similarity, backend=backend)
        self.stem = nn.Sequential(
            ConvModule(in_channels, stem_channels, 1, norm_cfg=norm_cfg),
            spatial(channels=stem_channels, stride=2),
            build_norm_layer(norm_cfg, stem_channels)[1],
            nn.ReLU(inplace=True),
        )
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.add_stages(stem_channels, base_channels, out_channels, spatial, norm_cfg, with_cp)
        self.finish()


def make_local_relation(channels: int, *, similarity: str = 'difference', **kwargs) -> LocalAttention:
    """Makes a local relation layer.

    Args:
        channels (int): Channels of input and output.
        similarity (str): As in :class:`mmrednet.layers.LocalRelationKernelGeneration`. Defaults to 'difference'.
        **kwargs: Other arguments of :class:`mmrednet.layers.LocalAttention`.
    """
    missing = -channels % GROUP_CHANNELS
    transform: nn.Module = nn.Conv2d(channels, channels, 1)
    if missing:  # zero channels make the last group as large as the others
        transform = nn.Sequential(_add_channels(-missing), transform)
    return LocalAttention(
        channels + missing,
        groups=(channels + missing) // GROUP_CHANNELS,
        kernel_generation=partial(LocalRelationKernelGeneration, similarity=similarity),
        in_channels=channels,
        value=_add_channels(missing) if missing else nn.Identity(),
        output=transform,
        border='mask',
        **kwargs,
    )


def _add_channels(count: int) -> nn.Module:
    """Returns a module that adds zero channels to images (N, C, H, W), or removes the last ones if negative."""
    # In a four-dimensional tensor, this module pads the three last dimensions.
    return nn.ConstantPad3d((0, 0, 0, 0, 0, count), 0.0)
