"""The parts of RedNet (section 4.1) and of similar networks: stem, bottleneck block and stages."""

from collections.abc import Callable, Sequence

from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .involution import build_involution


def run_branch(branch: Callable[[Tensor], Tensor], x: Tensor, with_cp: bool) -> Tensor:
    """Returns ``branch(x)``. With ``with_cp``, its activations are recomputed in the backward pass."""
    return checkpoint(branch, x, use_reentrant=False) if with_cp and x.requires_grad else branch(x)


class Bottleneck(BaseModule):
    """ResNet's bottleneck block with another layer in the place of its 3x3 convolution.

    Args:
        in_channels (int): Channels of the input.
        mid_channels (int): Channels of that layer.
        out_channels (int): Channels of the output.
        spatial (Callable): Makes that layer from the arguments ``channels``, ``stride`` and ``dilation``.
        stride (int): Stride of the layer. Defaults to 1.
        dilation (int): Dilation of the layer. Defaults to 1.
        downsample (nn.Module, optional): Brings the input to the output's shape. Defaults to None.
        norm_cfg (dict): Norm layers. Defaults to ``dict(type='BN')``.
        with_cp (bool): Whether to recompute activations in the backward pass. Defaults to False.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 4
    last_norm = 'bn3'  # a backbone with zero_init_residual sets its weights to zero

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        spatial: Callable[..., nn.Module],
        stride: int = 1,
        dilation: int = 1,
        downsample: nn.Module | None = None,
        norm_cfg: dict = dict(type='BN'),
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        self.bn1 = build_norm_layer(norm_cfg, mid_channels)[1]
        self.conv2 = spatial(channels=mid_channels, stride=stride, dilation=dilation)
        self.bn2 = build_norm_layer(norm_cfg, mid_channels)[1]
        self.conv3 = nn.Conv2d(mid_channels, out_channels, 1, bias=False)
        self.bn3 = build_norm_layer(norm_cfg, out_channels)[1]
        # Separate modules, so that a hook on one gets tensors of one shape. `relu` returns the output of the block.
        self.relu1, self.relu2, self.relu = (nn.ReLU(inplace=True) for _ in range(3))
        self.downsample = downsample
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to ``x`` (N, in_channels, H, W)."""
        return self.relu(run_branch(self._residual, x, self.with_cp))

    def _residual(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)).add_(identity)


def dilations_of_blocks(
    blocks: Sequence[int], dilations: Sequence[int], contract_dilation: bool, multi_grid: Sequence[int] | None
) -> list[list[int]]:
    """Returns the dilation of each block of each stage."""
    grids = [[dilation] * count for count, dilation in zip(blocks, dilations, strict=False)]
    for grid in grids if contract_dilation else []:
        grid[0] = max(grid[0] // 2, 1)
    if multi_grid is not None:
        grids[-1] = list(multi_grid[: blocks[-1]])
    return grids


def conv_stem(in_channels: int, stem_channels: int, norm_cfg: dict) -> nn.Sequential:
    """Makes ResNet's stem: a 7x7 convolution of stride 2. Max pooling follows it."""
    return nn.Sequential(ConvModule(in_channels, stem_channels, 7, 2, 3, norm_cfg=norm_cfg))


def involution_stem(
    in_channels: int, stem_channels: int, norm_cfg: dict, kernel_size: int, involution_cfg: dict
) -> nn.Sequential:
    """Makes RedNet's stem of stride 2: 3x3 convolutions around an involution. Max pooling follows it."""
    mid_channels = stem_channels // 2
    return nn.Sequential(
        ConvModule(in_channels, mid_channels, 3, 2, 1, norm_cfg=norm_cfg),
        build_involution(channels=mid_channels, kernel_size=kernel_size, **involution_cfg),
        build_norm_layer(norm_cfg, mid_channels)[1],
        nn.ReLU(inplace=True),
        ConvModule(mid_channels, stem_channels, 3, padding=1, norm_cfg=norm_cfg),
    )


def make_downsample(in_channels: int, out_channels: int, stride: int, norm_cfg: dict) -> nn.Sequential | None:
    """Makes what brings a block's input to the shape of its output, or returns None if they are equal."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), build_norm_layer(norm_cfg, out_channels)[1]
    )


def make_stage(
    in_channels: int,
    mid_channels: int,
    out_channels: int,
    stride: int,
    dilations: Sequence[int],
    spatial: Callable[..., nn.Module],
    norm_cfg: dict,
    with_cp: bool,
) -> nn.Sequential:
    """Makes a block for each of ``dilations``. The first block has the stride. See :class:`Bottleneck`."""
    downsample = make_downsample(in_channels, out_channels, stride, norm_cfg)
    channels = mid_channels, out_channels, spatial
    blocks = []
    for dilation in dilations:
        blocks.append(Bottleneck(in_channels, *channels, stride, dilation, downsample, norm_cfg, with_cp))
        in_channels, stride, downsample = out_channels, 1, None
    return nn.Sequential(*blocks)
