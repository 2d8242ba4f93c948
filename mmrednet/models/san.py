"""SAN, a network of pairwise or patchwise self-attention (Zhao, Jia and Koltun, CVPR 2020), for every toolbox."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from ..layers.attention import aggregate
from ..layers.san import PairwiseKernelGeneration, PatchwiseKernelGeneration, SANKernelGeneration
from ..registry import register_model
from .backbone import Backbone, refuse
from .blocks import run_branch

GROUP_CHANNELS = 8  # channels that share a kernel
WIDTHS = (64, 256, 512, 1024, 2048)  # channels of the part at stride 2 and of the four stages


class SAM(SANKernelGeneration):
    """SAN's self-attention module: kernels, and their application to values.

    It extends a kernel generation function, so that the parameters have the names of the released checkpoints.

    Args:
        channels (int): Channels of the input.
        value_channels (int): Channels of the values and of the output.
        kernel_size (int): Height and width of the window.
        backend (str, optional): As in :func:`mmrednet.ops.involution2d`. Defaults to None.

    Shape:
        (N, channels, H, W) to (N, value_channels, H, W).
    """

    def __init__(self, channels: int, value_channels: int, kernel_size: int, backend: str | None = None) -> None:
        window, padding = (kernel_size, kernel_size), (kernel_size // 2, kernel_size // 2)
        super().__init__(channels, value_channels // GROUP_CHANNELS, window, (1, 1), padding, (1, 1), backend=backend)
        self.conv3 = nn.Conv2d(channels, value_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the module to ``x`` (N, channels, H, W)."""
        kernel = super().forward(x).unflatten(1, (self.groups, *self.kernel_size))
        geometry = self.stride, self.padding, self.dilation
        return aggregate(self.conv3(x), kernel, *geometry, border=self.border, interleaved=True, backend=self.backend)


class PairwiseSAM(SAM, PairwiseKernelGeneration):
    """The self-attention module with the pairwise form."""


class PatchwiseSAM(SAM, PatchwiseKernelGeneration):
    """The self-attention module with the patchwise form."""


ATTENTION = {'pairwise': PairwiseSAM, 'patchwise': PatchwiseSAM}


class SANBlock(BaseModule):
    """SAN's residual block: BN, ReLU, :class:`SAM` to a quarter of the channels, BN, ReLU, 1x1 convolution.

    Args:
        channels (int): Channels of the input and of the output.
        kernel_size (int): Height and width of the window.
        attention (str): 'pairwise' or 'patchwise'.
        with_cp (bool): Whether to recompute activations in the backward pass. Defaults to False.
        backend (str, optional): As in :func:`mmrednet.ops.involution2d`. Defaults to None.

    Shape:
        (N, channels, H, W) to (N, channels, H, W).
    """

    def __init__(
        self, channels: int, kernel_size: int, attention: str, with_cp: bool = False, backend: str | None = None
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.sam = ATTENTION[attention](channels, channels // 4, kernel_size, backend)
        self.bn2 = nn.BatchNorm2d(channels // 4)
        self.conv = nn.Conv2d(channels // 4, channels, 1)
        self.relu = nn.ReLU(inplace=True)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to ``x`` (N, channels, H, W)."""
        return x + run_branch(self._residual, x, self.with_cp)

    def _residual(self, x: Tensor) -> Tensor:
        out = self.sam(self.relu(self.bn1(x)))
        return self.conv(self.relu(self.bn2(out)))


@register_model()
class SAN(Backbone):
    """SAN10, SAN15 and SAN19. The parameters have the names of the authors' released checkpoints.

    The network has a part at stride 2 and four stages at the strides 4, 8, 16 and 32. The part at stride 2 belongs to
    the stem here, so ``out_indices`` and ``frozen_stages`` mean the same as in ResNet. Each stage begins with max
    pooling and ends with BN and ReLU.

    Args:
        depth (int): 10, 15 or 19, the number of blocks.
        attention (str): 'pairwise' or 'patchwise'. Defaults to 'pairwise', the form of Table 1.
        kernel_sizes (Sequence[int]): Windows of the part at stride 2 and of the four stages, odd numbers. Small images
            need smaller ones. Defaults to (3, 7, 7, 7, 7).
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages, from 0, whose outputs are returned. Defaults to (3,).
        with_cp (bool): Whether blocks recompute activations in the backward pass, for less memory. Defaults to False.
        backend (str, optional): Backend of :func:`mmrednet.ops.involution2d`. Defaults to None, the fastest.
        **kwargs: ``frozen_stages``, ``norm_eval``, ``init_cfg`` and ``pretrained``, as in :class:`.backbone.Backbone`.

    Raises:
        TypeError: SAN has no argument of that name.
        ValueError: An argument is out of its range; or an image is too small for the windows.

    Shape:
        (N, in_channels, H, W), H and W at least 128 with the default windows, to a tuple of (N, C_i, H_i, W_i), where
        ``C_i = 256 * 2^i`` and ``H_i = floor(H / 2^(i + 2))``.
    """

    arch_settings = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}

    def __init__(
        self,
        depth: int,
        attention: str = 'pairwise',
        kernel_sizes: Sequence[int] = (3, 7, 7, 7, 7),
        in_channels: int = 3,
        out_indices: Sequence[int] = (3,),
        with_cp: bool = False,
        backend: str | None = None,
        **kwargs,
    ) -> None:
        if depth not in self.arch_settings:
            raise ValueError(f'depth must be one of {tuple(self.arch_settings)}, but is {depth!r}')
        if attention not in ATTENTION:
            raise ValueError(f'attention must be one of {tuple(ATTENTION)}, but is {attention!r}')
        if len(kernel_sizes) != len(WIDTHS) or not all(size > 0 and size % 2 for size in kernel_sizes):
            raise ValueError(f'kernel_sizes must be {len(WIDTHS)} odd numbers, but is {kernel_sizes!r}')
        # The blocks end in a convolution and not in a norm layer.
        refuse('SAN', {name: value for name, value in kwargs.items() if name == 'zero_init_residual'})
        super().__init__(4, out_indices, zero_init_residual=False, **kwargs)
        self.depth, self.attention = depth, attention
        # Map i has 1 / 2^(i + 1) of the image's height and width, and is reflected by half a window.
        self.smallest_image = max((size // 2 + 1) << (i + 1) for i, size in enumerate(kernel_sizes))
        self.conv_in = nn.Conv2d(in_channels, 64, 1, bias=False)
        self.bn_in = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        # mmcv's `fuse_conv_bn` folds a norm layer into the convolution before it in the list of modules. Here,
        # blocks are between the two, so all norm layers come before the convolutions.
        for i, width in enumerate(WIDTHS):
            self.add_module(f'bn{i}', nn.BatchNorm2d(width))
        channels, stages = 64, []
        for i, (blocks, width) in enumerate(zip(self.arch_settings[depth], WIDTHS, strict=True)):
            stage = [SANBlock(width, kernel_sizes[i], attention, with_cp, backend) for _ in range(blocks)]
            self.add_module(f'conv{i}', nn.Conv2d(channels, width, 1, bias=False))
            self.add_module(f'layer{i}', nn.Sequential(*stage))
            stages.append(('pool', f'conv{i}', f'layer{i}', f'bn{i}', 'relu'))
            channels = width
        self.parts = (('conv_in', 'bn_in', 'relu', *stages[0]), *stages[1:])
        self.finish()

    def forward(self, x: Tensor) -> tuple[Tensor, ...] | Tensor:
        """Returns the outputs of the stages ``out_indices`` for the images ``x`` (N, in_channels, H, W)."""
        least = self.smallest_image
        if min(x.shape[2:]) < least:
            raise ValueError(
                f'SAN needs images of at least {least}x{least} pixels, since it reflects its maps, but these have '
                f'{x.shape[2]}x{x.shape[3]}: use larger images or smaller kernel_sizes'
            )
        return super().forward(x)
