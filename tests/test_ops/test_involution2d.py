"""Every backend against the reference in float64, over one grid."""

from itertools import product

import pytest
import torch
import torch._dynamo.testing

from mmrednet.ops import involution2d
from mmrednet.ops.arguments import output_size, pair, same_padding

# Largest error that is allowed, relative to the sum of the absolute values of the terms of each sum.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

# (N, C, H, W), G, (Kh, Kw), stride, padding, dilation
CASES = [
    ((2, 32, 14, 14), 2, (7, 7), 1, None, 1),
    ((1, 64, 56, 56), 4, (7, 7), 1, None, 1),
    ((2, 32, 15, 13), 2, (7, 7), 2, None, 1),
    ((1, 32, 28, 28), 2, (3, 3), 1, None, 1),
    ((1, 48, 9, 33), 3, (5, 5), 2, None, 1),
    ((1, 16, 20, 17), 1, (9, 9), 1, None, 1),
    ((2, 8, 1, 1), 2, (7, 7), 1, None, 1),
    ((1, 8, 1, 1), 1, (7, 7), 2, None, 1),
    ((1, 8, 3, 2), 2, (7, 7), 2, None, 1),
    ((1, 6, 11, 12), 6, (3, 3), 1, None, 2),
    ((2, 6, 10, 9), 1, (3, 3), 2, None, 3),
    ((1, 12, 8, 11), 3, (3, 5), (2, 1), None, (1, 2)),
    ((1, 4, 6, 8), 4, (1, 7), 3, (0, 2), 1),
    ((1, 4, 7, 8), 2, (2, 4), 2, (1, 0), 1),
    ((1, 4, 5, 5), 2, (3, 3), 1, 4, 1),
    ((1, 4, 9, 9), 2, (5, 5), 1, 0, 1),
    ((1, 5, 40, 70), 1, (3, 3), 1, None, 1),
    ((0, 8, 6, 5), 2, (3, 3), 2, None, 1),
]
GRADIENTS = ('output', 'grad_input', 'grad_kernel')


def backends():
    """Backend and device, where the device or what the backend needs may not be there."""
    cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
    return [
        ('torch', 'cpu'),
        ('cpu', 'cpu'),
        pytest.param(('torch', 'cuda'), marks=cuda),
        pytest.param(('cuda', 'cuda'), marks=cuda),
    ]


def make_arguments(shape, groups, kernel_size, stride, padding, dilation, dtype, device, channels_last=False):
    stride, dilation = pair('stride', stride, 1), pair('dilation', dilation, 1)
    padding = same_padding(kernel_size, dilation) if padding is None else pair('padding', padding, 0)
    size = output_size(shape[2:], kernel_size, stride, padding, dilation)
    generator = torch.Generator().manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def normal(n, c, *hw):
        values = torch.randn((n, c, *hw), generator=generator, dtype=torch.float64)
        return values.to(device, dtype, memory_format=memory_format)

    kernel_channels = groups * kernel_size[0] * kernel_size[1]
    input = normal(*shape).requires_grad_()
    kernel = normal(shape[0], kernel_channels, *size).unflatten(1, (groups, *kernel_size)).requires_grad_()
    grad_output = normal(*shape[:2], *size)
    return input, kernel, grad_output, (stride, padding, dilation)


def run(input, kernel, grad_output, geometry, backend):
    output = involution2d(input, kernel, *geometry, backend=backend)
    return output, *torch.autograd.grad(output, (input, kernel), grad_output)


def check(actual, input, kernel, grad_output, geometry):
    tensors = [t.detach().to('cpu', torch.float64) for t in (input, kernel, grad_output)]
    exact = run(*(t.requires_grad_() for t in tensors[:2]), tensors[2], geometry, 'reference')
    # The same sums of absolute values: what rounding errors are measured by.
    scale = run(*(t.detach().abs().requires_grad_() for t in tensors[:2]), tensors[2].abs(), geometry, 'reference')
    for name, a, e, s in zip(GRADIENTS, actual, exact, scale, strict=True):
        assert a.dtype == input.dtype
        assert a.shape == e.shape
        error = (a.to('cpu', torch.float64) - e).abs()
        assert (error <= TOLERANCE[input.dtype] * s + 1e-300).all(), f'{name}: {(error / s).max()}'


@pytest.mark.parametrize('case', CASES, ids=str)
@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('backend', backends(), ids=str)
def test_matches_float64_reference(backend, dtype, case):
    name, device = backend
    for channels_last in (False, True):
        arguments = make_arguments(*case, dtype, device, channels_last)
        check(run(*arguments, name), *arguments)


@pytest.mark.parametrize('backend', backends(), ids=str)
def test_non_contiguous_arguments(backend):
    name, device = backend
    input, kernel, grad_output, geometry = make_arguments((2, 32, 9, 12), 2, (7, 7), 1, None, 1, torch.float32, device)
    input = torch.cat((input, input), 1)[:, ::2].transpose(2, 3).contiguous().transpose(2, 3).detach().requires_grad_()
    kernel = torch.cat((kernel, kernel), 4)[:, :, :, :, 3:12].detach().requires_grad_()
    for grad in (grad_output.flip(3), torch.ones((), device=device).expand_as(grad_output), grad_output.mT.clone().mT):
        arguments = (input, kernel, grad, geometry)
        check(run(*arguments, name), *arguments)


@pytest.fixture
def poisoned_memory():
    """Fills what torch.empty returns with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('channels_last', (False, True))
@pytest.mark.parametrize('backend', backends(), ids=str)
def test_writes_every_element(backend, channels_last, poisoned_memory):
    name, device = backend
    for case in CASES:
        results = run(*make_arguments(*case, torch.float32, device, channels_last), name)
        assert not any(result.isnan().any() for result in results), case


@pytest.mark.parametrize('backend', backends(), ids=str)
def test_same_bits_for_any_number_of_threads(backend):
    name, device = backend
    threads = torch.get_num_threads()
    for case, channels_last in product((CASES[1], CASES[2]), (False, True)):
        arguments = make_arguments(*case, torch.float32, device, channels_last)
        runs = []
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            runs.append(run(*arguments, name))
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize('backend', backends(), ids=str)
def test_gradients_of_first_and_second_order(backend):
    name, device = backend
    for case in (((2, 4, 5, 4), 2, (3, 3), 2, None, 1), ((1, 2, 4, 3), 1, (3, 1), 1, None, 2)):
        input, kernel, _, geometry = make_arguments(*case, torch.float64, device)

        def operator(input, kernel, geometry=geometry):
            return involution2d(input, kernel, *geometry, backend=name)

        assert torch.autograd.gradcheck(operator, (input, kernel))
        assert torch.autograd.gradgradcheck(operator, (input, kernel))


@pytest.mark.parametrize('channels_last', (False, True))
@pytest.mark.parametrize('backend', backends(), ids=str)
def test_is_a_good_dispatcher_operator(backend, channels_last):
    name, device = backend
    arguments = make_arguments((2, 4, 6, 5), 2, (3, 3), 2, None, 1, torch.float32, device, channels_last)
    input, kernel, grad_output, geometry = arguments
    geometry = [list(g) for g in geometry]
    torch.library.opcheck(torch.ops.mmrednet.involution2d, (input, kernel, *geometry, name))
    grad_output = grad_output.requires_grad_()
    torch.library.opcheck(
        torch.ops.mmrednet.involution2d_grad_input, (grad_output, kernel, list(input.shape[2:]), *geometry, name)
    )
    torch.library.opcheck(torch.ops.mmrednet.involution2d_grad_kernel, (grad_output, input, 2, [3, 3], *geometry, name))


@pytest.mark.parametrize('backend', backends(), ids=str)
def test_compiles_once_for_all_sizes(backend):
    name, device = backend
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend('aot_eager')

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def operator(input, kernel):
        return involution2d(input, kernel, backend=name).relu()

    for size in ((9, 12), (8, 21), (33, 14)):
        arguments = make_arguments((2, 8, *size), 2, (3, 3), 1, None, 1, torch.float32, device)
        input, kernel, grad_output, _ = arguments
        output = operator(input, kernel)
        expected = involution2d(input, kernel, backend='reference').relu()
        torch.testing.assert_close(output, expected)
        for a, e in zip(
            torch.autograd.grad(output, (input, kernel), grad_output),
            torch.autograd.grad(expected, (input, kernel), grad_output),
            strict=True,
        ):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.parametrize('dtype', (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize('backend', [('reference', 'cpu'), *backends()], ids=str)
def test_autocast_brings_dtypes_together(backend, dtype):
    name, device = backend
    input, kernel, grad_output, geometry = make_arguments((1, 8, 6, 6), 2, (3, 3), 1, None, 1, torch.float32, device)
    low = kernel.detach().to(dtype).requires_grad_()
    with torch.autocast(device, dtype=dtype):
        output = involution2d(input, low, backend=name)
    assert output.dtype == dtype
    grads = torch.autograd.grad(output, (input, low), grad_output.to(dtype))
    assert [g.dtype for g in grads] == [torch.float32, dtype]
    expected = involution2d(input.to(dtype).double(), low.double(), backend='reference')
    torch.testing.assert_close(output.double(), expected, rtol=1e-2, atol=2e-2)
    with torch.autocast(device, dtype=dtype):
        assert involution2d(input.double(), kernel.double(), backend=name).dtype == torch.float64


@pytest.mark.parametrize('backend', backends(), ids=str)
def test_output_keeps_the_memory_format(backend):
    name, device = backend
    arguments = make_arguments((2, 8, 6, 5), 2, (3, 3), 1, None, 1, torch.float32, device, channels_last=True)
    output, grad_input, grad_kernel = run(*arguments, name)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert grad_input.is_contiguous(memory_format=torch.channels_last)
    assert grad_kernel.flatten(1, 3).is_contiguous(memory_format=torch.channels_last)


X, H = torch.rand(2, 8, 6, 5), torch.rand(2, 2, 3, 3, 6, 5)


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
