"""The operators as torch's own tools take them: opcheck, torch.compile, torch.fx, autocast."""

import pytest
import torch
import torch._dynamo.testing
from helpers import CASES, backends, check, make_arguments, make_fused_arguments, run
from torch import library

from mmrednet.ops import fused_involution2d, involution2d


@pytest.mark.parametrize('channels_last', (False, True))
@pytest.mark.parametrize('backend', backends(), ids=str)
def test_is_a_good_dispatcher_operator(backend, channels_last):
    name, device = backend
    arguments = make_arguments((2, 4, 6, 5), 2, (3, 3), 2, None, 1, torch.float32, device, channels_last)
    (input, kernel), grad_output, geometry = arguments
    geometry = [list(g) for g in geometry]
    library.opcheck(torch.ops.mmrednet.involution2d, (input, kernel, *geometry, name))
    grad_output = grad_output.requires_grad_()
    library.opcheck(
        torch.ops.mmrednet.involution2d_grad_input, (grad_output, kernel, list(input.shape[2:]), *geometry, name)
    )
    library.opcheck(torch.ops.mmrednet.involution2d_grad_kernel, (grad_output, input, 2, [3, 3], *geometry, name))


@pytest.mark.parametrize('backend', backends(), ids=str)
def test_fused_is_a_good_dispatcher_operator(backend):
    name, device = backend
    tensors, _, geometry = make_fused_arguments((1, 4, 5, 4), 2, (3, 3), 2, None, 1, torch.float64, device)
    library.opcheck(torch.ops.mmrednet.fused_involution2d, (*tensors, *map(list, geometry), name))


def test_compiled_autograd_calls_it():
    (input, kernel), _, geometry = make_arguments(*CASES[2], torch.float32, 'cpu')
    expected = run(involution2d, (input, kernel), torch.ones_like(involution2d(input, kernel, *geometry)), geometry)

    def train():
        involution2d(input, kernel, *geometry).sum().backward()

    torch._dynamo.reset()
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(train, backend='eager')()
    assert torch.equal(input.grad, expected[1]) and torch.equal(kernel.grad, expected[2])


def test_is_one_node_of_a_symbolic_trace():
    (input, kernel), _, _ = make_arguments(*CASES[2], torch.float32, 'cpu')
    traced = torch.fx.symbolic_trace(lambda input, kernel: involution2d(input, kernel, stride=2))
    assert [node.target for node in traced.graph.nodes if node.op == 'call_function'] == [involution2d]
    assert torch.equal(traced(input, kernel), involution2d(input, kernel, stride=2))


def test_fused_is_one_node_of_a_symbolic_trace():
    tensors, *_ = make_fused_arguments(*CASES[2], torch.float32, 'cpu')
    traced = torch.fx.symbolic_trace(lambda x, features, w, b: fused_involution2d(x, features, w, b, 7, 2))
    assert [node.target for node in traced.graph.nodes if node.op == 'call_function'] == [fused_involution2d]
    assert torch.equal(traced(*tensors), fused_involution2d(*tensors, 7, 2))


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
        (input, kernel), grad_output, _ = arguments
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
    (input, kernel), grad_output, geometry = make_arguments((1, 8, 6, 6), 2, (3, 3), 1, None, 1, torch.float32, device)
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


@pytest.mark.parametrize('backend', [('reference', 'cpu'), *backends()], ids=str)
def test_autocast_brings_all_tensors_of_the_fused_operator_together(backend):
    name, device = backend
    tensors, grad_output, geometry = make_fused_arguments(*CASES[3], torch.float32, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = fused_involution2d(*tensors, *geometry, backend=name)
    assert output.dtype == torch.bfloat16
    grads = torch.autograd.grad(output, tensors, grad_output.bfloat16())
    assert {g.dtype for g in grads} == {torch.float32}
    low = [t.detach().bfloat16().requires_grad_() for t in tensors]
    check(fused_involution2d, (output, *(g.bfloat16() for g in grads)), low, grad_output.bfloat16(), geometry)
