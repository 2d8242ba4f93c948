"""Tensors of more than 2^31 elements on the CPU. It takes 12 GiB of memory and a minute on two cores."""

import pytest
import torch

from mmrednet.ops import involution2d

SIDE = 33_000  # 2 images of one channel have 2.18e9 pixels


@pytest.fixture
def problem():
    """Returns an image of zeros with 100 other pixels, among them the last of each image, and where they are."""
    with open('/proc/meminfo') as file:
        available = next(int(line.split()[1]) for line in file if line.startswith('MemAvailable'))
    if available < 12 << 20:
        pytest.skip('needs 12 GiB of free memory')
    x = torch.zeros(2, 1, SIDE, SIDE, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    generator = torch.Generator().manual_seed(0)
    places = torch.stack([torch.randint(n, (100,), generator=generator) for n in (2, SIDE, SIDE)])
    places[:, :2] = torch.tensor([[0, 1], [SIDE - 1] * 2, [SIDE - 1] * 2])
    x[places[0], 0, places[1], places[2]] = torch.arange(1, 101).bfloat16()
    return x, places


@pytest.mark.slow
@pytest.mark.parametrize('backend', ('cpu', None))
def test_forward(problem, backend):
    """With the weights 0 to 8 in every window, each pixel is in up to nine outputs."""
    x, places = problem
    weights = torch.arange(9).bfloat16().view(1, 1, 3, 3, 1, 1)
    with torch.no_grad():
        out = involution2d(x, weights.expand(2, 1, 3, 3, SIDE, SIDE), backend=backend)
    image = torch.sparse_coo_tensor(places, x[places[0], 0, places[1], places[2]].double(), (2, SIDE, SIDE))
    pixels = {
        tuple(place): value
        for place, value in zip(image.coalesce().indices().T.tolist(), image.coalesce().values().tolist(), strict=True)
    }
    for n, y, x_ in pixels:
        for i, j in ((i, j) for i in range(y - 1, y + 2) for j in range(x_ - 1, x_ + 2)):
            if 0 <= i < SIDE and 0 <= j < SIDE:
                expected = sum(
                    (3 * u + v) * pixels.get((n, i + u - 1, j + v - 1), 0) for u in range(3) for v in range(3)
                )
                assert out[n, 0, i, j].item() == torch.tensor(expected).bfloat16().item()
    assert out.count_nonzero() <= 8 * len(pixels)


@pytest.mark.slow
@pytest.mark.parametrize('backend', ('cpu', None))
def test_gradients(problem, backend):
    """With a window of one pixel and the weight 2, the gradients are twice the image, and the product of two images."""
    x, places = problem
    weight = torch.full((1, 1, 1, 1, 1, 1), 2.0, dtype=torch.bfloat16).expand(2, 1, 1, 1, SIDE, SIDE)
    grad = torch.full((1, 1, 1, 1), 3.0, dtype=torch.bfloat16).expand_as(x)
    for wanted, factor in (('x', 2), ('kernel', 3)):
        first = x.requires_grad_(wanted == 'x')
        second = weight.detach().requires_grad_(wanted == 'kernel')
        given = grad if wanted == 'kernel' else x.detach()
        (found,) = torch.autograd.grad(
            involution2d(first, second, backend=backend), first if wanted == 'x' else second, given
        )
        values = found.view(2, SIDE, SIDE)[tuple(places)]
        assert torch.equal(values, (factor * x.detach()[places[0], 0, places[1], places[2]]))
        assert found.count_nonzero() == x.detach().count_nonzero()
        del found
        x.requires_grad_(False)
