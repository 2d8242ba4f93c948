"""Kernel generation and involution in one, against the one after the other in float64."""

import pytest
import test_involution2d as plain
import torch
import torch.nn.functional as F

from mmrednet.ops import fused_involution2d, involution2d

GRADIENTS = ('output', 'grad_input', 'grad_features', 'grad_weight', 'grad_bias')
REDUCED = 6


def make_arguments(case, dtype, device, channels_last=False):
    shape, groups, kernel_size = case[:3]
    input, kernel, grad_output, geometry = plain.make_arguments(*case, dtype, device, channels_last)
    generator = torch.Generator().manual_seed(1)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype)

    features = normal(shape[0], REDUCED, *kernel.shape[4:]).contiguous(memory_format=memory_format)
    weight = normal(groups * kernel_size[0] * kernel_size[1], REDUCED, 1, 1)
    bias = normal(weight.shape[0])
    tensors = [t.detach().requires_grad_() for t in (input, features, weight, bias)]
    return tensors, grad_output, (kernel_size, *geometry)


def run(tensors, grad_output, geometry, backend=None):
    output = fused_involution2d(*tensors, *geometry, backend=backend)
    return output, *torch.autograd.grad(output, tensors, grad_output)


def apart(tensors, grad_output, geometry):
    """The truth: PyTorch's convolution, then the reference, with autograd's gradients."""
    input, features, weight, bias = tensors
    kernel_size, *geometry = geometry
    kernel = F.conv2d(features, weight, bias).unflatten(1, (-1, *kernel_size))
    output = involution2d(input, kernel, *geometry, backend='reference')
    return output, *torch.autograd.grad(output, tensors, grad_output)


def check(actual, tensors, grad_output, geometry):
    exact, scale = (
        apart(
            [f(t.detach().to('cpu', torch.float64)).requires_grad_() for t in tensors],
            f(grad_output.cpu().double()),
            geometry,
        )
        for f in (torch.clone, torch.abs)
    )
    # Two sums in a row, each with the roundings that its tolerance allows.
    tolerance = 3 * plain.TOLERANCE[grad_output.dtype]
    for name, a, e, s in zip(GRADIENTS, actual, exact, scale, strict=True):
        assert a.dtype == grad_output.dtype
        assert a.shape == e.shape
        error = (a.to('cpu', torch.float64) - e).abs()
        assert (error <= tolerance * s + 1e-300).all(), f'{name}: {(error / s).max()}'


@pytest.mark.parametrize('case', plain.CASES, ids=str)
@pytest.mark.parametrize('dtype', plain.TOLERANCE, ids=str)
@pytest.mark.parametrize('backend', plain.backends(), ids=str)
def test_matches_float64_reference(backend, dtype, case):
    name, device = backend
    for channels_last in (False, True):
        arguments = make_arguments(case, dtype, device, channels_last)
        check(run(*arguments, name), *arguments)


@pytest.mark.parametrize('backend', plain.backends(), ids=str)
def test_non_contiguous_arguments_and_no_bias(backend):
    name, device = backend
    (input, features, weight, _), grad_output, geometry = make_arguments(plain.CASES[0], torch.float32, device)
    features = torch.cat((features, features), 1)[:, ::2].mT.contiguous().mT
    weight = weight.detach().transpose(0, 1).contiguous().transpose(0, 1)
    tensors = [t.detach().requires_grad_() for t in (input, features, weight, torch.zeros_like(weight[:, 0, 0, 0]))]
    output = fused_involution2d(*tensors[:3], None, *geometry, backend=name)
    check((output, *run(tensors, grad_output, geometry, name)[1:]), tensors, grad_output, geometry)


@pytest.mark.parametrize('backend', plain.backends(), ids=str)
def test_same_bits_for_any_number_of_threads(backend):
    name, device = backend
    threads = torch.get_num_threads()
    arguments = make_arguments(plain.CASES[1], torch.float32, device)
    outputs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        outputs.append(fused_involution2d(*arguments[0], *arguments[2], backend=name))
    torch.set_num_threads(threads)
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize('backend', plain.backends(), ids=str)
def test_is_a_good_dispatcher_operator_twice_differentiable(backend):
    name, device = backend
    tensors, _, (kernel_size, *geometry) = make_arguments(((1, 4, 5, 4), 2, (3, 3), 2, None, 1), torch.float64, device)
    geometry = [list(kernel_size), *(list(g) for g in geometry)]
    torch.library.opcheck(torch.ops.mmrednet.fused_involution2d, (*tensors, *geometry, name))

    def operator(*tensors):
        return fused_involution2d(*tensors, *geometry, backend=name)

    assert torch.autograd.gradcheck(operator, tensors)
    assert torch.autograd.gradgradcheck(operator, tensors)


@pytest.mark.parametrize('backend', [('reference', 'cpu'), *plain.backends()], ids=str)
def test_autocast_brings_dtypes_together(backend):
    name, device = backend
    tensors, grad_output, geometry = make_arguments(plain.CASES[3], torch.float32, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = fused_involution2d(*tensors, *geometry, backend=name)
    assert output.dtype == torch.bfloat16
    grads = torch.autograd.grad(output, tensors, grad_output.bfloat16())
    assert {g.dtype for g in grads} == {torch.float32}
    low = [t.detach().bfloat16().requires_grad_() for t in tensors]
    check((output, *(g.bfloat16() for g in grads)), low, grad_output.bfloat16(), geometry)


def test_generated_kernels_are_not_kept():
    """What the backward pass keeps are the arguments: no K * K * G values a pixel."""
    tensors, *_, geometry = make_arguments(plain.CASES[1], torch.float32, 'cpu')
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        fused_involution2d(*tensors, *geometry)
    assert kept == [t.shape for t in tensors]


X, F_, W, B = torch.rand(2, 8, 6, 5), torch.rand(2, 4, 6, 5), torch.rand(18, 4, 1, 1), torch.rand(18)


@pytest.mark.parametrize('backend', ('reference', None))
@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        ((X, F_.tolist(), W, B, 3), TypeError, ('features', 'list')),
        ((X, F_, W[:, :, 0, 0], B, 3), ValueError, ('weight', '(18, 4)', 'G * Kh * Kw')),
        ((X, F_, W, B.double(), 3), TypeError, ('bias', 'float64', 'float32')),
        ((X, F_[:, :3], W, B, 3), ValueError, ('weight', 'R = 3', '(18, 4, 1, 1)')),
        ((X, F_, W[:17], B, 3), ValueError, ('weight', '(3, 3)', '(17, 4, 1, 1)')),
        ((X, F_, W, B[:17], 3), ValueError, ('bias', '(18,)', '(17,)')),
        ((X, F_[..., :4], W, B, 3), ValueError, ('6x5', '6x4')),
        ((X[:, :7], F_, W, B, 3), ValueError, ('groups', '2', '7')),
        ((X, F_, W, B, 0), ValueError, ('kernel_size', '0')),
    ],
    ids=lambda value: None if isinstance(value, tuple) else getattr(value, '__name__', None),
)
def test_errors_name_the_argument(backend, arguments, error, words):
    with pytest.raises(error) as info:
        fused_involution2d(*arguments, backend=backend)
    for word in words:
        assert word in str(info.value)
