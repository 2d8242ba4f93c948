"""Results of the operators, also as a data set that spawned workers can import."""

import torch
from torch.utils.data import Dataset

from mmrednet.ops import fused_involution2d, involution2d


def compute(seed):
    """Returns the outputs of both operators and the gradients of involution2d, for random tensors."""
    generator = torch.Generator().manual_seed(seed)
    size = 4 + seed % 13
    x = torch.randn(2, 32, size, 20, generator=generator, requires_grad=True)
    kernel = torch.randn(2, 2, 7, 7, size, 20, generator=generator, requires_grad=True)
    weight = torch.randn(98, 8, 1, 1, generator=generator)
    out = involution2d(x, kernel)
    fused = fused_involution2d(x, x[:, :8], weight, None, 7)
    # Not the gradients of `fused`: they contain torch's convolution, whose sums depend on the number of threads.
    return [t.detach() for t in (out, fused, *torch.autograd.grad(out.sum(), (x, kernel)))]


class Computed(Dataset):
    """Eight results, as a transform of images would compute them."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return compute(index)
