"""Wrong arguments of the operators. The error names the argument, its value and the remedy."""

import pytest
import torch

from mmrednet.ops import fused_involution2d, involution2d

X, H = torch.rand(2, 8, 6, 5), torch.rand(2, 2, 3, 3, 6, 5)
F, W, B = torch.rand(2, 4, 6, 5), torch.rand(18, 4, 1, 1), torch.rand(18)  # H may be made from these


@pytest.mark.parametrize(
    'entry', (involution2d, torch.compile(involution2d, backend='eager', dynamic=False)), ids=('eager', 'compiled')
)
@pytest.mark.parametrize(
    ('arguments', 'options', 'error', 'words'),
    [
        ((X.tolist(), H), {}, TypeError, ('input', 'list', '(N, C, H, W)')),
        ((X[0], H), {}, ValueError, ('input', '4', '(8, 6, 5)')),
        ((X, H[0]), {}, ValueError, ('kernel', '6', '(2, 3, 3, 6, 5)')),
        ((X.int(), H.int()), {}, TypeError, ('input', 'float32', 'int32')),
        ((X, H.double()), {}, TypeError, ('input', 'kernel', 'float64', 'cast')),
        ((X, H.to('meta')), {}, ValueError, ('kernel', 'one device', 'cpu', 'meta')),
        ((X, H[:1]), {}, ValueError, ('kernel', 'batch', '2')),
        ((X[:, :7], H), {}, ValueError, ('groups', '2', '7', 'divide')),
        ((X, H[:, :0]), {}, ValueError, ('kernel', 'group')),
        ((X, H[..., :4]), {}, ValueError, ('kernel', '6x5', '6x4')),
        ((X, H, 2), {}, ValueError, ('kernel', '3x3', '6x5')),
        ((X, H[:, :, :2]), {}, ValueError, ('padding', '2x3')),
        ((X, H, 0), {}, ValueError, ('stride', '0')),
        ((X, H, (1, 0)), {}, ValueError, ('stride', '(1, 0)')),
        ((X, H, 1.5), {}, ValueError, ('stride', '1.5')),
        ((X, H, (1, 2, 3)), {}, ValueError, ('stride', '(1, 2, 3)')),
        ((X, H, 1, -1), {}, ValueError, ('padding', '-1')),
        ((X, H, 1, 0, 4), {}, ValueError, ('6x5', '3x3', 'padding')),
        ((X, H), {'backend': 'tpu'}, ValueError, ('backend', 'tpu', 'reference')),
        ((X, H), {'backend': 'cuda'}, ValueError, ('backend', 'cuda', 'cpu')),
    ],
    ids=lambda value: None if isinstance(value, tuple) else getattr(value, '__name__', None),
)
def test_errors_name_argument_and_remedy(entry, arguments, options, error, words):
    if entry is not involution2d:
        # torch.compile wraps what the fake kernel raises and keeps the text.
        error = Exception
    with pytest.raises(error) as info:
        entry(*arguments, **options)
    for word in words:
        assert word in str(info.value)


@pytest.mark.parametrize('backend', ('reference', None))
@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        ((X, F.tolist(), W, B, 3), TypeError, ('features', 'list')),
        ((X, F, W[:, :, 0, 0], B, 3), ValueError, ('weight', '(18, 4)', 'G * Kh * Kw')),
        ((X, F, W, B.double(), 3), TypeError, ('bias', 'float64', 'float32')),
        ((X, F[:, :3], W, B, 3), ValueError, ('weight', 'R = 3', '(18, 4, 1, 1)')),
        ((X, F, W[:17], B, 3), ValueError, ('weight', '(3, 3)', '(17, 4, 1, 1)')),
        ((X, F, W, B[:17], 3), ValueError, ('bias', '(18,)', '(17,)')),
        ((X, F[..., :4], W, B, 3), ValueError, ('6x5', '6x4')),
        ((X[:, :7], F, W, B, 3), ValueError, ('groups', '2', '7')),
        ((X, F, W, B, 0), ValueError, ('kernel_size', '0')),
    ],
    ids=lambda value: None if isinstance(value, tuple) else getattr(value, '__name__', None),
)
def test_errors_name_the_argument(backend, arguments, error, words):
    with pytest.raises(error) as info:
        fused_involution2d(*arguments, backend=backend)
    for word in words:
        assert word in str(info.value)
