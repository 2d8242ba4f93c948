"""Kernel generation and involution in one operator, compared with both in turn in float64."""

import pytest
import torch
from helpers import CASES, TOLERANCE, backends, check, make_fused_arguments, run

from mmrednet.ops import fused_involution2d


@pytest.mark.parametrize('case', CASES, ids=str)
@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('backend', backends(), ids=str)
def test_matches_float64_reference(backend, dtype, case):
    name, device = backend
    for channels_last in (False, True):
        arguments = make_fused_arguments(*case, dtype, device, channels_last)
        check(fused_involution2d, run(fused_involution2d, *arguments, backend=name), *arguments)


@pytest.mark.parametrize('backend', backends(), ids=str)
def test_non_contiguous_arguments_and_no_bias(backend):
    name, device = backend
    (input, features, weight, _), grad_output, geometry = make_fused_arguments(*CASES[0], torch.float32, device)
    features = torch.cat((features, features), 1)[:, ::2].mT.contiguous().mT
    weight = weight.detach().transpose(0, 1).contiguous().transpose(0, 1)
    tensors = [t.detach().requires_grad_() for t in (input, features, weight, torch.zeros_like(weight[:, 0, 0, 0]))]
    output = fused_involution2d(*tensors[:3], None, *geometry, backend=name)
    gradients = run(fused_involution2d, tensors, grad_output, geometry, backend=name)[1:]
    check(fused_involution2d, (output, *gradients), tensors, grad_output, geometry)


@pytest.mark.parametrize('backend', backends(), ids=str)
def test_same_bits_for_any_number_of_threads(backend):
    name, device = backend
    threads = torch.get_num_threads()
    arguments = make_fused_arguments(*CASES[1], torch.float32, device)
    outputs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        outputs.append(fused_involution2d(*arguments[0], *arguments[2], backend=name))
    torch.set_num_threads(threads)
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize('backend', backends(), ids=str)
def test_gradients_of_first_and_second_order(backend):
    name, device = backend
    tensors, _, geometry = make_fused_arguments((1, 4, 5, 4), 2, (3, 3), 2, None, 1, torch.float64, device)

    def operator(*tensors):
        return fused_involution2d(*tensors, *geometry, backend=name)

    assert torch.autograd.gradcheck(operator, tensors)
    assert torch.autograd.gradgradcheck(operator, tensors)


def test_generated_kernels_are_not_kept():
    """The backward pass keeps only the arguments: no K * K * G values a pixel."""
    tensors, *_, geometry = make_fused_arguments(*CASES[1], torch.float32, 'cpu')
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        fused_involution2d(*tensors, *geometry)
    assert kept == [t.shape for t in tensors]
