"""The product of queries with the keys in their windows, against loops in float64."""

import itertools

import pytest
import torch
from helpers import CASES, backends, make_arguments
from torch import library

from mmrednet.ops import window_product2d
from mmrednet.ops.borders import inside, reflect


def by_loops(query, key, groups, kernel_size, stride, padding, dilation):
    """One product after the other, as the formula has them."""
    n, channels, height, width = query.shape
    out = torch.zeros(n, groups, *kernel_size, height, width, dtype=torch.float64)
    for u, v, i, j in itertools.product(*map(range, (*kernel_size, height, width))):
        y, x = i * stride[0] - padding[0] + u * dilation[0], j * stride[1] - padding[1] + v * dilation[1]
        if 0 <= y < key.shape[2] and 0 <= x < key.shape[3]:
            products = query[:, :, i, j].double() * key[:, :, y, x].double()
            out[:, :, u, v, i, j] = products.unflatten(1, (groups, -1)).sum(2)
    return out


SMALL = [case for case in CASES if torch.Size(case[0]).numel() <= 3000]


@pytest.mark.parametrize('case', SMALL, ids=str)
@pytest.mark.parametrize('backend', backends(), ids=str)
def test_equals_the_formula(case, backend):
    name, device = backend
    shape, groups, kernel_size, *_ = case
    (key, _), query, geometry = make_arguments(*case, torch.float32, device)
    out = window_product2d(query, key, kernel_size, groups, *geometry, backend=name)
    expected = by_loops(query, key, groups, kernel_size, *geometry)
    assert out.shape == expected.shape
    assert torch.allclose(out.double().cpu(), expected, atol=1e-5)


@pytest.mark.parametrize('backend', ['reference', 'torch', 'cpu'])
def test_gradients(backend):
    query = torch.randn(1, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    key = torch.randn(1, 4, 5, 4, dtype=torch.float64, requires_grad=True)

    def product(query, key):
        return window_product2d(query, key, 3, groups=2, stride=2, backend=backend)

    assert torch.autograd.gradcheck(product, (query, key), check_forward_ad=backend != 'reference')
    assert torch.autograd.gradgradcheck(product, (query, key))


def test_vmap_autocast_and_compile():
    query, key = torch.randn(3, 2, 4, 5, 6), torch.randn(3, 2, 4, 5, 6)
    product = torch.func.vmap(lambda q, k: window_product2d(q, k, 3, groups=2))
    expected = torch.stack([window_product2d(q, k, 3, groups=2) for q, k in zip(query, key, strict=True)])
    assert torch.equal(product(query, key), expected)
    with torch.autocast('cpu', torch.bfloat16):
        assert window_product2d(query[0], key[0], 3).dtype is torch.bfloat16
    compiled = torch.compile(lambda q, k: window_product2d(q, k, 3), backend='aot_eager', fullgraph=True)
    assert torch.equal(compiled(query[0], key[0]), window_product2d(query[0], key[0], 3))


def test_a_good_citizen_of_the_dispatcher():
    query, key = torch.randn(1, 4, 3, 2, requires_grad=True), torch.randn(1, 4, 5, 4, requires_grad=True)
    arguments = (query, key, 2, (3, 3), (2, 2), (1, 1), (1, 1))
    library.opcheck(torch.ops.mmrednet.window_product2d.default, arguments)


@pytest.mark.parametrize(
    ('change', 'error', 'text'),
    [
        (dict(query=torch.zeros(1, 4, 5)), ValueError, 'query must have 4 dimensions'),
        (dict(key='key'), TypeError, 'key must be a tensor'),
        (dict(query=torch.zeros(1, 4, 4, 6)), ValueError, 'query must have 5x6 pixels'),
        (dict(query=torch.zeros(1, 8, 5, 6)), ValueError, 'the same batch size and channels'),
        (dict(query=torch.zeros(1, 4, 5, 6, dtype=torch.float64)), TypeError, 'dtype of query'),
        (dict(groups=3), ValueError, 'groups must be a divisor of the 4 channels'),
        (dict(groups=0), ValueError, 'groups must be a divisor'),
        (dict(kernel_size=0), ValueError, 'kernel_size must be at least 1'),
        (dict(kernel_size=9, padding=0), ValueError, 'smaller than the window of 9x9'),
        (dict(kernel_size=2), ValueError, "padding None means 'same'"),
        (dict(backend='gpu'), ValueError, 'backend must be None or one of'),
    ],
)
def test_errors_name_the_argument(change, error, text):
    arguments = dict(query=torch.zeros(1, 4, 5, 6), key=torch.zeros(1, 4, 5, 6), kernel_size=3)
    with pytest.raises(error, match=text):
        window_product2d(**{**arguments, **change})


def test_taps_inside_the_image():
    for size, kernel_size, stride, padding, dilation in (
        ((5, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
        ((5, 7), (3, 5), (2, 1), (2, 0), (2, 1)),
    ):
        taps = inside(size, kernel_size, stride, padding, dilation)
        for u, v, i, j in itertools.product(*map(range, taps.shape)):
            y, x = i * stride[0] - padding[0] + u * dilation[0], j * stride[1] - padding[1] + v * dilation[1]
            assert taps[u, v, i, j] == (0 <= y < size[0] and 0 <= x < size[1])


def test_a_map_that_is_too_small_to_reflect_is_named():
    assert reflect(torch.zeros(1, 1, 4, 4), (3, 3)).shape == (1, 1, 10, 10)
    with pytest.raises(ValueError, match='at least 4 pixels high, but it is 3'):
        reflect(torch.zeros(1, 1, 3, 4), (3, 3))
