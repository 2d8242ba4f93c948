"""The two forms of SAN (Zhao, Jia and Koltun, CVPR 2020) as kernel generation functions. They need torch alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.backends import Pair
from ..ops.borders import reflect
from .attention import _Windows


class _SANKernelGeneration(_Windows):
    """Common to both: two 1x1 convolutions whose outputs are related over windows; the image is reflected."""

    def __init__(
        self,
        channels: int,
        groups: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        relation_channels: int | None = None,
        border: str = 'reflect',
        backend: str | None = None,
    ) -> None:
        super().__init__(channels, groups, kernel_size, stride, padding, dilation, border, backend)
        if border != 'reflect':
            raise ValueError(f"border must be 'reflect' in SAN, but is {border!r}")
        self.relation_channels = channels // 16 if relation_channels is None else relation_channels
        self.conv1 = nn.Conv2d(channels, self.relation_channels, 1)
        self.conv2 = nn.Conv2d(channels, self.relation_channels, 1)

    def windows(self, x: Tensor) -> Tensor:
        """Returns the pixels under each tap, (N, C, Kh * Kw, Ho * Wo), of an image (N, C, H, W)."""
        taps = F.unfold(reflect(x, self.padding), self.kernel_size, self.dilation, 0, self.stride)
        return taps.unflatten(1, (x.shape[1], -1))


class PairwiseKernelGeneration(_SANKernelGeneration):
    """SAN's pairwise form: a softmax over the window of ``gamma(delta(x_i, x_j))`` (eq. 3 of SAN).

    ``delta`` is the difference of the two features and the difference of the two positions; positions go from -1 to 1
    over the whole map. ``gamma`` is BN, ReLU, 1x1 convolution, BN, ReLU, 1x1 convolution.

    Args:
        channels (int): Channels C of the features.
        groups (int): Groups G.
        kernel_size (tuple[int, int]): Kh and Kw.
        stride (tuple[int, int]): Stride in pixels.
        padding (tuple[int, int]): Padding in pixels.
        dilation (tuple[int, int]): Dilation in pixels.
        relation_channels (int, optional): Channels of the features that are compared. Defaults to None: C / 16.
        border (str): 'reflect'; SAN has no other. Defaults to 'reflect'.
        backend (str, optional): As in :func:`mmrednet.ops.involution2d`. Defaults to None.

    Raises:
        ValueError: ``border`` is another, or a map is not larger than its padding.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        relation = self.relation_channels
        self.conv_w = nn.Sequential(
            nn.BatchNorm2d(relation + 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(relation + 2, relation, 1, bias=False),
            nn.BatchNorm2d(relation),
            nn.ReLU(inplace=True),
            nn.Conv2d(relation, self.groups, 1),
        )
        self.conv_p = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps all pixels (N, C, H, W) to kernels (N, G * Kh * Kw, Ho, Wo)."""
        relation = self._differences(self.conv1(x), self.conv2(x))
        positions = self.conv_p(_coordinates(x))
        positions = self._differences(positions, positions).expand(x.shape[0], -1, -1, -1)
        weights = self.conv_w(torch.cat([relation, positions], 1)).softmax(2)
        return weights.flatten(1, 2).unflatten(2, self.at_outputs(x).shape[2:])

    def _differences(self, centre: Tensor, neighbour: Tensor) -> Tensor:
        """Returns the pixels in the middle of the windows minus those under each tap, (N, C, Kh * Kw, Ho * Wo)."""
        return self.at_outputs(centre).flatten(2).unsqueeze(2) - self.windows(neighbour)


class PatchwiseKernelGeneration(_SANKernelGeneration):
    """SAN's patchwise form: ``gamma([phi(x_i), psi(x_j) for all j])``, without a softmax (eqs. 4 and 6 of SAN).

    ``gamma`` is BN, ReLU, 1x1 convolution, BN, ReLU, 1x1 convolution.

    Args:
        channels (int): As in :class:`PairwiseKernelGeneration`, like all that follow.
        groups (int): Groups G.
        kernel_size (tuple[int, int]): Kh and Kw.
        stride (tuple[int, int]): Stride in pixels.
        padding (tuple[int, int]): Padding in pixels.
        dilation (tuple[int, int]): Dilation in pixels.
        relation_channels (int, optional): Channels of the features that are compared. Defaults to None: C / 16.
        border (str): 'reflect'. Defaults to 'reflect'.
        backend (str, optional): As in :func:`mmrednet.ops.involution2d`. Defaults to None.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        taps = self.kernel_size[0] * self.kernel_size[1]
        seen = self.relation_channels * (taps + 1)
        self.conv_w = nn.Sequential(
            nn.BatchNorm2d(seen),
            nn.ReLU(inplace=True),
            nn.Conv2d(seen, self.groups, 1, bias=False),
            nn.BatchNorm2d(self.groups),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.groups, self.groups * taps, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps all pixels (N, C, H, W) to kernels (N, G * Kh * Kw, Ho, Wo)."""
        centre = self.at_outputs(self.conv1(x))
        neighbours = self.windows(self.conv2(x)).flatten(1, 2).unflatten(2, centre.shape[2:])
        return self.conv_w(torch.cat([centre, neighbours], 1))


def _coordinates(x: Tensor) -> Tensor:
    """Returns the positions of a map's pixels, (1, 2, H, W): from -1 to 1 over the width, and over the height."""
    height, width = x.shape[2:]
    rows, columns = (torch.linspace(-1, 1, size, dtype=x.dtype, device=x.device) for size in (height, width))
    return torch.stack(torch.meshgrid(columns, rows, indexing='xy'))[None]
