"""Eq. 4 of the paper as plainly as PyTorch can say it: the truth that every backend is held against."""

import torch.nn.functional as F
from torch import Tensor


def involution2d(
    input: Tensor, kernel: Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """Unfolds the input into its windows, weighs them and sums. Autograd gives its gradients.

    Arguments and result are those of :func:`mmrednet.ops.involution2d`.
    """
    n, c = input.shape[:2]
    g, kh, kw, ho, wo = kernel.shape[1:]
    accumulate = input.float() if input.itemsize < 4 else input
    windows = F.unfold(accumulate, (kh, kw), dilation, padding, stride).view(n, g, c // g, kh, kw, ho, wo)
    return (kernel.unsqueeze(2).to(windows.dtype) * windows).sum((3, 4)).view(n, c, ho, wo).to(input.dtype)
