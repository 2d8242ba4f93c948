"""RedNet, ResNet with involutions in the place of its 3x3 convolutions (section 4.1), for every toolbox."""

from collections.abc import Sequence
from functools import partial
from math import gcd

from torch import nn

from ..registry import register_model
from .backbone import ResNetBackbone
from .blocks import Bottleneck, conv_stem, involution_stem
from .involution import build_involution

STEMS = ('involution', 'conv')


@register_model()
class RedNet(ResNetBackbone):
    """RedNet-26, 38, 50, 101 and 152 (Table 1).

    Args:
        depth (int): 26, 38, 50, 101 or 152.
        in_channels (int): Channels of the image. Defaults to 3.
        stem (str): 'involution' (3x3 convolutions around an involution) or 'conv' (ResNet's 7x7 convolution, as in
            Table 6). Defaults to 'involution'.
        stem_kernel_size (int): Window of the stem's involution: 3 for classification, 7 for dense prediction.
            Defaults to 3.
        stem_channels (int): Channels of the stem's output. Defaults to 64.
        base_channels (int): Channels of the involutions in the first stage. Defaults to 64.
        num_stages (int): Stages to build, from 1 to 4. Defaults to 4.
        strides (Sequence[int]): Stride of each stage. Defaults to (1, 2, 2, 2).
        dilations (Sequence[int]): Dilation of each stage. Defaults to (1, 1, 1, 1).
        contract_dilation (bool): Whether a dilated stage's first block has half of its dilation, as in the toolboxes'
            ResNet. Defaults to False.
        multi_grid (Sequence[int], optional): Dilation of each block of the last stage, as in mmseg's ResNet. Defaults
            to None: the dilation of the stage.
        out_indices (Sequence[int]): Stages, from 0, whose outputs are returned. Defaults to (3,).
        kernel_size (int): Window of the trunk's involutions. Defaults to 7.
        group_channels (int, optional): Number of channels that share a kernel, or None: all channels. Defaults to 16.
        reduction_ratio (int): Reduction ratio of the kernel generation function. Defaults to 4.
        kernel_generation (dict, optional): Config of another kernel generation function, for stem and trunk.
            Defaults to None.
        frozen_stages (int): Stages to freeze, with or without a checkpoint, as in the toolboxes' ResNet: 0 is the stem
            alone, 1 the stem and the first stage, -1 nothing. Defaults to -1.
        norm_cfg (dict): Norm layers. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Whether norm layers keep their statistics in training. Defaults to False.
        with_cp (bool): Whether blocks recompute activations in the backward pass, for less memory. Defaults to False.
        zero_init_residual (bool): Whether the weights of each block's last norm layer start at zero, even without
            ``init_weights``. A checkpoint overwrites them. Defaults to True.
        fused (bool, optional): As in :class:`mmrednet.layers.Involution`. Defaults to None: in inference only.
        backend (str, optional): Backend of :func:`mmrednet.ops.involution2d`. Defaults to None, the fastest.
        init_cfg (dict or list, optional): The initialisation by ``init_weights``: ``dict(checkpoint=...)``, see
            :class:`mmrednet.checkpoint.pretrained.Pretrained`, or mmengine's other initialisations. Defaults to None:
            Kaiming for convolutions, ones for norm layers.
        pretrained (str, optional): A checkpoint, as in the toolboxes' old configs, instead of ``init_cfg``. Defaults
            to None.

    Raises:
        TypeError: RedNet has no argument of that name.
        ValueError: An argument is out of its range, or both ``pretrained`` and ``init_cfg`` are given.

    Shape:
        (N, in_channels, H, W) to a tuple of (N, C_i, H_i, W_i), where ``C_i = 4 * base_channels * 2^i`` and, with the
        default strides, ``H_i = ceil(H / 2^(i + 2))``. In mmaction2's scope, a single output is a tensor and not a
        tuple, as in mmaction2's ResNet.

    Example:
        >>> tuple(RedNet(50, out_indices=(0, 1, 2, 3))(torch.rand(1, 3, 225, 225))[3].shape)
        (1, 2048, 8, 8)
    """

    arch_settings = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        stem: str = 'involution',
        stem_kernel_size: int = 3,
        stem_channels: int = 64,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        contract_dilation: bool = False,
        multi_grid: Sequence[int] | None = None,
        out_indices: Sequence[int] = (3,),
        kernel_size: int = 7,
        group_channels: int | None = 16,
        reduction_ratio: int = 4,
        kernel_generation: dict | None = None,
        frozen_stages: int = -1,
        norm_cfg: dict = dict(type='BN', requires_grad=True),
        norm_eval: bool = False,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        fused: bool | None = None,
        backend: str | None = None,
        pretrained: str | None = None,
        init_cfg: dict | list | None = None,
        **unknown,
    ) -> None:
        super().__init__(
            depth,
            num_stages,
            strides,
            dilations,
            contract_dilation,
            multi_grid,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            zero_init_residual=zero_init_residual,
            pretrained=pretrained,
            init_cfg=init_cfg,
            **unknown,
        )
        _check_widths(stem, stem_channels, base_channels, group_channels)
        self.public_weights = (f'mmrednet://rednet{depth}',)
        phi_cfg = dict(reduction_ratio=reduction_ratio, norm_cfg=norm_cfg, kernel_generation=kernel_generation)
        involution_cfg = dict(group_channels=group_channels, fused=fused, backend=backend, **phi_cfg)
        if stem == 'conv':
            self.stem = conv_stem(in_channels, stem_channels, norm_cfg)
        else:
            self.stem = involution_stem(in_channels, stem_channels, norm_cfg, stem_kernel_size, involution_cfg)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        spatial = partial(build_involution, kernel_size=kernel_size, **involution_cfg)
        out_channels = Bottleneck.expansion * base_channels
        self.add_stages(stem_channels, base_channels, out_channels, spatial, norm_cfg, with_cp)
        self.finish()


def _check_widths(stem: str, stem_channels: int, base_channels: int, group_channels: int | None) -> None:
    if stem not in STEMS:
        raise ValueError(f'stem must be one of {STEMS}, but is {stem!r}')
    widths = [('base_channels', base_channels)]
    if stem == 'involution':
        widths.append(('half of stem_channels', stem_channels // 2))
    for name, width in widths:
        if group_channels is not None and group_channels > 0 and width % group_channels:
            raise ValueError(
                f'{name} must be a multiple of group_channels, {group_channels}, but is {width}: give other '
                f'channels, or group_channels={gcd(group_channels, width)}'
            )
