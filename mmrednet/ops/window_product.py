"""The products of queries with the keys in their windows: the first step of local attention, before involution."""

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .arguments import IntPair, check_groups, check_ranks, check_tensors, checked_output_size, pair, to_pairs
from .backends import check_backend, reference
from .dispatcher import GEOMETRY, OPERATORS, call, cast_for_autocast, register
from .involution import GradKernel


def window_product2d(
    query: Tensor,
    key: Tensor,
    kernel_size: IntPair,
    groups: int = 1,
    stride: IntPair = 1,
    padding: IntPair | None = None,
    dilation: IntPair = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Multiplies the query at every output pixel with each key in its window, and sums over the channels of a group.

    .. math::
        P_{n,g,u,v,i,j} = \sum_{c \in g} Q_{n,c,i,j} K_{n,c,\,i s - p + u d,\,j s - p + v d}

    Local self-attention (section 4.2 of the paper) is ``softmax(P)`` over the window, applied to values by
    :func:`involution2d`. A key outside the image is zero, and so is its product. The product is also the gradient of
    involution with respect to its kernel.

    Args:
        query (Tensor): ``Q``, of shape (N, C, Ho, Wo), in float16, bfloat16, float32 or float64.
        key (Tensor): ``K``, of shape (N, C, H, W). Same device and dtype as ``query``; autocast casts both.
        kernel_size (int or pair): Height and width of the window.
        groups (int): Number of groups (heads) G of C / G neighbouring channels. Defaults to 1.
        stride (int or pair): Stride ``s`` of the windows in pixels, (vertical, horizontal). Defaults to 1.
        padding (int or pair, optional): Zero padding ``p`` on both sides in pixels. Defaults to None: 'same', which is
            ``dilation * (kernel_size - 1) / 2``.
        dilation (int or pair): Distance ``d`` between the window's taps in pixels. Defaults to 1.
        backend (str, optional): As in :func:`involution2d`. Defaults to None: the fastest on the device.

    Returns:
        Tensor: ``P``, of shape (N, G, Kh, Kw, Ho, Wo), the shape of a kernel of :func:`involution2d`.

    Raises:
        TypeError: An argument is not a tensor, or its dtype is not one of those above, or the two dtypes differ.
        ValueError: Shapes, groups, devices, kernel_size, stride, padding, dilation or backend do not fit.

    Example:
        >>> q, k = torch.randn(2, 32, 8, 10), torch.randn(2, 32, 15, 20)
        >>> window_product2d(q, k, kernel_size=7, groups=4, stride=2).shape
        torch.Size([2, 4, 7, 7, 8, 10])
    """
    if has_torch_function((query, key)):
        arguments = dict(groups=groups, stride=stride, padding=padding, dilation=dilation, backend=backend)
        return handle_torch_function(window_product2d, (query, key), query, key, kernel_size, **arguments)
    check_backend(backend)
    check_ranks(query=query, key=key)
    kernel_size = pair('kernel_size', kernel_size, 1)
    geometry = to_pairs(kernel_size, stride, padding, dilation)
    check_groups(groups, query.shape[1])
    if backend == 'reference':
        query, key = cast_for_autocast(query.device.type, query, key)
        _check(query, key, kernel_size, *geometry)
        return reference.window_product2d(query, key, groups, kernel_size, *geometry)
    return call(OPERATORS.window_product2d.default, query, key, groups, kernel_size, *geometry, backend)


@register
class WindowProduct2d(GradKernel):
    """The same computation as :class:`GradKernel`. In errors, its arguments are named ``query`` and ``key``."""

    schema = f'window_product2d(Tensor query, Tensor key, int groups, int[2] kernel_size, {GEOMETRY}) -> Tensor'
    tensors = 2

    @staticmethod
    def fake(query, key, groups, kernel_size, stride, padding, dilation, backend=None):
        _check(query, key, kernel_size, stride, padding, dilation)
        return GradKernel.fake(query, key, groups, kernel_size, stride, padding, dilation)


def _check(query, key, kernel_size, stride, padding, dilation) -> None:
    check_tensors(query=query, key=key)
    if query.shape[:2] != key.shape[:2]:
        raise ValueError(
            f'query and key must have the same batch size and channels, but their shapes are {tuple(query.shape)} and '
            f'{tuple(key.shape)}'
        )
    height, width = checked_output_size('key', key.shape[2:], kernel_size, stride, padding, dilation)
    if query.shape[2] != height or query.shape[3] != width:
        raise ValueError(
            f'query must have {height}x{width} pixels, one for each window (key {key.shape[2]}x{key.shape[3]}, '
            f'stride {tuple(stride)}, padding {tuple(padding)}, dilation {tuple(dilation)}), but its shape is '
            f'{tuple(query.shape)}'
        )
