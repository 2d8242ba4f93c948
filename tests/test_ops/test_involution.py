"""Every backend against the reference in float64, over one grid."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from helpers import CASES, TOLERANCE, backends, check, make_arguments, run

from mmrednet.ops import involution2d


@pytest.mark.parametrize('case', CASES, ids=str)
@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('backend', backends(), ids=str)
def test_matches_float64_reference(backend, dtype, case):
    name, device = backend
    for channels_last in (False, True):
        arguments = make_arguments(*case, dtype, device, channels_last)
        check(involution2d, run(involution2d, *arguments, backend=name), *arguments)


@pytest.mark.parametrize('backend', backends(), ids=str)
def test_non_contiguous_arguments(backend):
    name, device = backend
    case = (2, 32, 9, 12), 2, (7, 7), 1, None, 1
    (input, kernel), grad_output, geometry = make_arguments(*case, torch.float32, device)
    input = torch.cat((input, input), 1)[:, ::2].transpose(2, 3).contiguous().transpose(2, 3).detach().requires_grad_()
    kernel = torch.cat((kernel, kernel), 4)[:, :, :, :, 3:12].detach().requires_grad_()
    for grad in (grad_output.flip(3), torch.ones((), device=device).expand_as(grad_output), grad_output.mT.clone().mT):
        arguments = (input, kernel), grad, geometry
        check(involution2d, run(involution2d, *arguments, backend=name), *arguments)


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
        arguments = make_arguments(*case, torch.float32, device, channels_last)
        results = run(involution2d, *arguments, backend=name)
        assert not any(result.isnan().any() for result in results), case


@pytest.mark.parametrize('stride', (1, 2))
@pytest.mark.parametrize('backend', backends(), ids=str)
def test_what_the_kernel_holds_outside_the_input_does_not_matter(backend, stride):
    name, device = backend
    arguments = make_arguments((2, 8, 9, 11), 2, (5, 3), stride, None, 2, torch.float32, device)
    (input, kernel), grad_output, geometry = arguments
    expected = run(involution2d, *arguments, backend=name)
    inside = F.unfold(torch.ones_like(input[:1, :1]), (5, 3), geometry[2], geometry[1], geometry[0]) > 0
    inside = inside.view(5, 3, *kernel.shape[4:])
    assert not inside.all()
    for value in (float('inf'), float('nan')):
        poisoned = torch.where(inside, kernel, value).detach().requires_grad_()
        results = run(involution2d, (input, poisoned), grad_output, geometry, backend=name)
        for a, e in zip(results, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('backend', backends(), ids=str)
def test_same_bits_for_any_number_of_threads(backend):
    name, device = backend
    threads = torch.get_num_threads()
    for case, channels_last in product((CASES[1], CASES[2]), (False, True)):
        arguments = make_arguments(*case, torch.float32, device, channels_last)
        runs = []
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            runs.append(run(involution2d, *arguments, backend=name))
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize('backend', backends(), ids=str)
def test_gradients_of_first_and_second_order(backend):
    name, device = backend
    for case in (((2, 4, 5, 4), 2, (3, 3), 2, None, 1), ((1, 2, 4, 3), 1, (3, 1), 1, None, 2)):
        tensors, _, geometry = make_arguments(*case, torch.float64, device)

        def operator(input, kernel, geometry=geometry):
            return involution2d(input, kernel, *geometry, backend=name)

        assert torch.autograd.gradcheck(operator, tensors)
        assert torch.autograd.gradgradcheck(operator, tensors)


@pytest.mark.parametrize('backend', backends(), ids=str)
def test_output_keeps_the_memory_format(backend):
    name, device = backend
    arguments = make_arguments((2, 8, 6, 5), 2, (3, 3), 1, None, 1, torch.float32, device, channels_last=True)
    output, grad_input, grad_kernel = run(involution2d, *arguments, backend=name)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert grad_input.is_contiguous(memory_format=torch.channels_last)
    assert grad_kernel.flatten(1, 3).is_contiguous(memory_format=torch.channels_last)
