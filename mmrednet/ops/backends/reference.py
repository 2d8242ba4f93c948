"""Eq. 4 of the paper in plain PyTorch: the tests compare every backend with it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Pair


def involution2d(input: Tensor, kernel: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Unfolds the input into windows, multiplies them with the kernel and sums. Autograd computes the gradients.

    Kernel values at taps outside the input are set to zero, since infinity times the zeros there would be NaN.
    Arguments and result are those of :func:`mmrednet.ops.involution2d`.
    """
    n, c = input.shape[:2]
    g, kh, kw, ho, wo = kernel.shape[1:]
    accumulate = input.float() if input.itemsize < 4 else input
    geometry = (kh, kw), dilation, padding, stride
    windows = F.unfold(accumulate, *geometry).view(n, g, c // g, kh, kw, ho, wo)
    inside = F.unfold(accumulate.new_ones(1, 1, *input.shape[2:]), *geometry).view(kh, kw, ho, wo) > 0
    kernel = torch.where(inside, kernel, 0).unsqueeze(2).to(windows.dtype)
    return (kernel * windows).sum((3, 4)).view(n, c, ho, wo).to(input.dtype)


def window_product2d(
    query: Tensor, key: Tensor, groups: int, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Unfolds the keys into windows, multiplies them with the queries and sums over the channels of a group.

    Arguments and result are those of :func:`mmrednet.ops.window_product2d`.
    """
    n, c, ho, wo = query.shape
    accumulate = key.float() if key.itemsize < 4 else key
    windows = F.unfold(accumulate, kernel_size, dilation, padding, stride)
    windows = windows.view(n, groups, c // groups, *kernel_size, ho, wo)
    query = query.to(windows.dtype).view(n, groups, c // groups, 1, 1, ho, wo)
    return (query * windows).sum(2).to(key.dtype)
