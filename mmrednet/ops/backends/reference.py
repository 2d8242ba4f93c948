"""Eq. 4 of the paper as plainly as PyTorch can say it: the truth that every backend is held against."""

import torch
import torch.nn.functional as F
from torch import Tensor


def involution2d(
    input: Tensor, kernel: Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """Unfolds the input into its windows, weighs them and sums. Autograd gives its gradients.

    Taps outside the input are taken out of the kernel, since infinity times the zeros there would not be zero.
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
