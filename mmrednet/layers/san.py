"""The two forms of SAN (Zhao, Jia and Koltun, CVPR 2020) as kernel generation functions. They need torch alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.borders import reflect
from .attention import WindowKernelGeneration


class SANKernelGeneration(WindowKernelGeneration):
    """The base class of both forms: two 1x1 convolutions, and reflection at the border.

    Args:
        *args: The arguments of :class:`WindowKernelGeneration`. The only border is 'reflect', the default.
        relation_channels (int, optional): Output channels of the two convolutions. Defaults to None: C / 16.
        **kwargs: The same arguments by name.

    Raises:
        ValueError: ``border`` is not 'reflect'.
    """

    def __init__(self, *args, relation_channels: int | None = None, border: str = 'reflect', **kwargs) -> None:
        super().__init__(*args, border=border, **kwargs)
        if border != 'reflect':
            raise ValueError(f"border must be 'reflect' in SAN, but is {border!r}")
        self.relation_channels = max(1, self.channels // 16) if relation_channels is None else relation_channels
        self.conv1 = nn.Conv2d(self.channels, self.relation_channels, 1)
        self.conv2 = nn.Conv2d(self.channels, self.relation_channels, 1)

    def windows(self, x: Tensor) -> Tensor:
        """Returns the pixels under each tap, (N, C, Kh * Kw, Ho * Wo), of an image (N, C, H, W)."""
        taps = F.unfold(reflect(x, self.padding), self.kernel_size, self.dilation, 0, self.stride)
        return taps.unflatten(1, (x.shape[1], -1))


class PairwiseKernelGeneration(SANKernelGeneration):
    """SAN's pairwise form: a softmax over the window of ``gamma(delta(x_i, x_j))`` (eq. 3 of SAN).

    ``delta`` is the difference of the two features and the difference of the two positions. Positions go from -1 to 1
    over the whole map. ``gamma`` is BN, ReLU, 1x1 convolution, BN, ReLU, 1x1 convolution. The arguments are those of
    :class:`SANKernelGeneration`.
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
        """Maps features (N, C, H, W) to kernels (N, G * Kh * Kw, Ho, Wo)."""
        relation = self._differences(self.conv1(x), self.conv2(x))
        positions = self.conv_p(_coordinates(x))
        positions = self._differences(positions, positions).expand(x.shape[0], -1, -1, -1)
        weights = self.conv_w(torch.cat([relation, positions], 1)).softmax(2)
        return weights.flatten(1, 2).unflatten(2, self.at_outputs(x).shape[2:])

    def _differences(self, centre: Tensor, neighbour: Tensor) -> Tensor:
        """Returns the pixel in the middle of each window minus the pixel under each tap, (N, C, Kh * Kw, Ho * Wo)."""
        return self.at_outputs(centre).flatten(2).unsqueeze(2) - self.windows(neighbour)


class PatchwiseKernelGeneration(SANKernelGeneration):
    """SAN's patchwise form: ``gamma([phi(x_i), psi(x_j) for all j])``, without a softmax (eqs. 4 and 6 of SAN).

    ``gamma`` is BN, ReLU, 1x1 convolution, BN, ReLU, 1x1 convolution. The arguments are those of
    :class:`SANKernelGeneration`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        taps = self.kernel_size[0] * self.kernel_size[1]
        inputs = self.relation_channels * (taps + 1)
        self.conv_w = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(inputs, self.groups, 1, bias=False),
            nn.BatchNorm2d(self.groups),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.groups, self.groups * taps, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (N, C, H, W) to kernels (N, G * Kh * Kw, Ho, Wo)."""
        centre = self.at_outputs(self.conv1(x))
        neighbours = self.windows(self.conv2(x)).flatten(1, 2).unflatten(2, centre.shape[2:])
        return self.conv_w(torch.cat([centre, neighbours], 1))


def _coordinates(x: Tensor) -> Tensor:
    """Returns the positions of the pixels of a map, (1, 2, H, W): from -1 to 1 over the width and over the height."""
    height, width = x.shape[2:]
    rows, columns = (torch.linspace(-1, 1, size, dtype=x.dtype, device=x.device) for size in (height, width))
    return torch.stack(torch.meshgrid(columns, rows, indexing='xy'))[None]
