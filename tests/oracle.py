"""The formulas of the operators in plain loops over the taps of a window, with NumPy in float64, in any dimension.

They use nothing of mmrednet and no operator of torch.
"""

from itertools import product
from typing import NamedTuple

import numpy as np


class Geometry(NamedTuple):
    """The window of an operator: one number for each axis, and the number of groups."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def outputs(self, size):
        """Counts the windows along each axis by trying one position after the other. May be zero."""
        counts = []
        for length, k, s, p, d in zip(size, *self[:4], strict=True):
            first = range(-p, length + p, s)  # the first pixel of each window
            counts.append(sum(start + d * (k - 1) < length + p for start in first))
        return tuple(counts)

    def taps(self, size):
        """Yields each tap, the index of the outputs whose tap is inside the image, and the index of those pixels."""
        for tap in product(*map(range, self.kernel_size)):
            to, at = [], []
            for axis, (length, count) in enumerate(zip(size, self.outputs(size), strict=True)):
                offset = tap[axis] * self.dilation[axis] - self.padding[axis]
                met = [(i, i * self.stride[axis] + offset) for i in range(count)]
                met = [(i, pixel) for i, pixel in met if 0 <= pixel < length]
                to.append([i for i, _ in met])
                at.append([pixel for _, pixel in met])
            every = slice(None), slice(None)
            yield tap, (*every, *np.ix_(*to)), (*every, *np.ix_(*at))


def involution(x, kernel, geometry):
    """Eq. 4 of the paper."""
    size, channels = x.shape[2:], x.shape[1] // geometry.groups
    out = np.zeros((*x.shape[:2], *geometry.outputs(size)))
    for tap, to, at in geometry.taps(size):
        out[to] += x[at] * np.repeat(kernel[(*to[:2], *tap, *to[2:])], channels, 1)
    return out


def input_gradient(grad, kernel, size, geometry):
    """The gradient of eq. 4 with respect to an input of this size."""
    out = np.zeros((*grad.shape[:2], *size))
    for tap, to, at in geometry.taps(size):
        out[at] += grad[to] * np.repeat(kernel[(*to[:2], *tap, *to[2:])], grad.shape[1] // geometry.groups, 1)
    return out


def kernel_gradient(grad, x, geometry):
    """The gradient of eq. 4 with respect to the kernel, and the products of queries (``grad``) with keys (``x``)."""
    size, groups = x.shape[2:], geometry.groups
    out = np.zeros((grad.shape[0], groups, *geometry.kernel_size, *geometry.outputs(size)))
    for tap, to, at in geometry.taps(size):
        products = grad[to] * x[at]
        shape = products.shape[0], groups, products.shape[1] // groups, *products.shape[2:]
        out[(*to[:2], *tap, *to[2:])] = products.reshape(shape).sum(2)
    return out


def generate(features, weight, bias, geometry):
    """The kernel that a 1x1 convolution generates, (N, G, Kh, Kw, Ho, Wo)."""
    kernel = np.einsum('kr,nrij->nkij', weight[:, :, 0, 0], features)
    if bias is not None:
        kernel = kernel + bias[:, None, None]
    n, _, height, width = kernel.shape
    return kernel.reshape(n, geometry.groups, *geometry.kernel_size, height, width)


def generation_gradients(grad, features, weight):
    """The gradients of features, weight and bias, from that of the generated kernel."""
    grad = grad.reshape(grad.shape[0], weight.shape[0], *features.shape[2:])
    return (
        np.einsum('nkij,kr->nrij', grad, weight[:, :, 0, 0]),
        np.einsum('nkij,nrij->kr', grad, features)[:, :, None, None],
        grad.sum((0, 2, 3)),
    )
