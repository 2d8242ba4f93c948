"""The involutions that are measured: those of RedNet and of the FPN. Only ``rednet_cases`` needs mmengine and mmcv."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import Involution
from ..ops.arguments import output_size, same_padding


@dataclass(frozen=True)
class Case:
    """The sizes of an involution without the batch size. The padding is 'same'. Pairs are (vertical, horizontal)."""

    channels: int
    size: tuple[int, int]  # of the input, in pixels
    kernel_size: tuple[int, int] = (7, 7)
    stride: tuple[int, int] = (1, 1)
    groups: int = 1
    dilation: tuple[int, int] = (1, 1)

    @property
    def padding(self) -> tuple[int, int]:
        """The padding that 'same' stands for."""
        return same_padding(self.kernel_size, self.dilation)

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        return output_size(self.size, self.kernel_size, self.stride, self.padding, self.dilation)

    def __str__(self) -> str:
        text = f'{self.channels}x{self.size[0]}x{self.size[1]}, K = {_short(self.kernel_size)}'
        for name in ('stride', 'dilation'):
            if (pair := getattr(self, name)) != (1, 1):
                text += f', {name} {_short(pair)}'
        return text


def _short(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f'{pair[0]}x{pair[1]}'


def rednet_cases(depth: int = 50, size: tuple[int, int] = (224, 224)) -> list[Case]:
    """Returns the different involutions of a RedNet for images of this size, from the stem to the last stage."""
    from ..models.rednet import RedNet

    cases: dict[Case, None] = {}  # in the order of the calls

    def record(layer: Involution, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        height, width = inputs[0].shape[2:]
        geometry = layer.kernel_size, layer.stride, layer.groups, layer.dilation
        cases[Case(layer.out_channels, (height, width), *geometry)] = None

    with torch.device('meta'), torch.no_grad():
        model = RedNet(depth).eval()
        for layer in model.modules():
            if isinstance(layer, Involution):
                layer.register_forward_hook(record)
        model(torch.empty(1, 3, *size))
    return list(cases)


def stage_cases() -> list[Case]:
    """Returns the involution with stride 1 of each of RedNet-50's four stages, for images of 224x224."""
    return [Case(64 << i, (56 >> i, 56 >> i), groups=4 << i) for i in range(4)]


def fpn_case(size: tuple[int, int]) -> Case:
    """Returns the involution of the FPN's finest level, P2. Its map has a quarter of the image's height and width."""
    return Case(256, (size[0] // 4, size[1] // 4), groups=16)
