"""torch.func and forward-mode autograd give the same results for the operators as for plain PyTorch."""

from itertools import product

import pytest
import torch
from helpers import TRUTH, backends
from torch import func
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from mmrednet.ops import fused_involution2d, involution2d

OPERATORS = torch.ops.mmrednet
SIZE, *GEOMETRY = (3, 3), (2, 2), (1, 1), (1, 1)  # of the window; stride, padding and dilation
SHAPES = {
    'input': (2, 4, 5, 4),
    'kernel': (2, 2, *SIZE, 3, 2),
    'grad_output': (2, 4, 3, 2),
    'features': (2, 3, 3, 2),
    'weight': (18, 3, 1, 1),
    'bias': (18,),
}


def unfused(*tensors):
    return TRUTH[fused_involution2d](*tensors, SIZE, *GEOMETRY)


def reference(*tensors):
    return TRUTH[involution2d](*tensors, *GEOMETRY)


def reference_grad_input(grad_output, kernel):
    _, pull_back = func.vjp(lambda input: reference(input, kernel), torch.zeros(SHAPES['input']).to(kernel))
    return pull_back(grad_output)[0]


def reference_grad_kernel(grad_output, input):
    _, pull_back = func.vjp(lambda kernel: reference(input, kernel), torch.zeros(SHAPES['kernel']).to(input))
    return pull_back(grad_output)[0]


# By name: the function of tensors and a backend, its truth in plain PyTorch, and the names of its tensors.
FUNCTIONS = {
    'involution2d': (
        lambda *tensors, backend: involution2d(*tensors, *GEOMETRY, backend=backend),
        reference,
        ('input', 'kernel'),
    ),
    'fused_involution2d': (
        lambda *tensors, backend: fused_involution2d(*tensors, SIZE, *GEOMETRY, backend=backend),
        unfused,
        ('input', 'features', 'weight', 'bias'),
    ),
    'fused_involution2d without bias': (
        lambda *tensors, backend: fused_involution2d(*tensors, None, SIZE, *GEOMETRY, backend=backend),
        lambda *tensors: unfused(*tensors, None),
        ('input', 'features', 'weight'),
    ),
    'torch.ops, involution2d': (
        lambda *tensors, backend: OPERATORS.involution2d(*tensors, *GEOMETRY, backend),
        reference,
        ('input', 'kernel'),
    ),
    'torch.ops, grad_input': (
        lambda *tensors, backend: OPERATORS.involution2d_grad_input(*tensors, SHAPES['input'][2:], *GEOMETRY, backend),
        reference_grad_input,
        ('grad_output', 'kernel'),
    ),
    'torch.ops, grad_kernel': (
        lambda *tensors, backend: OPERATORS.involution2d_grad_kernel(*tensors, 2, SIZE, *GEOMETRY, backend),
        reference_grad_kernel,
        ('grad_output', 'input'),
    ),
    'torch.ops, fused_involution2d': (
        lambda *tensors, backend: OPERATORS.fused_involution2d(*tensors, SIZE, *GEOMETRY, backend),
        unfused,
        ('input', 'features', 'weight', 'bias'),
    ),
}


@pytest.fixture(params=backends(), ids=str)
def backend(request):
    return request.param


@pytest.fixture(params=FUNCTIONS)
def functions(request, backend):
    """Returns the function, its truth and its tensors."""
    (name, device), (function, truth, names) = backend, FUNCTIONS[request.param]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(SHAPES[name], generator=generator, dtype=torch.float64).to(device) for name in names]
    return lambda *tensors: function(*tensors, backend=name), truth, tuple(tensors)


def check(transform, function, truth, *arguments):
    """Compares a transform of a function with the same transform of its truth."""
    expected = tree_leaves(transform(truth, *arguments))
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            for a, e in zip(tree_leaves(transform(function, *arguments)), expected, strict=True):
                torch.testing.assert_close(a, e)


def every(tensors):
    return tuple(range(len(tensors)))


def tangents(tensors):
    return tuple(tensor.cos() for tensor in tensors)


def total(function):
    """Returns a function to a scalar whose second and third derivatives are not zero."""
    return lambda *tensors: function(*tensors).pow(3).sum()


def push_forward(function, *tensors):
    return func.jvp(function, tensors, tangents(tensors))


def dual(function, *tensors):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(*map(forward_ad.make_dual, tensors, tangents(tensors))))


def one_by_one(transform):
    """Transforms a function of each tensor, with the others as constants."""

    def transform_each(function, *tensors):
        return [
            transform(lambda t, i=i: function(*tensors[:i], t, *tensors[i + 1 :]), tensors[i]) for i in every(tensors)
        ]

    return transform_each


TRANSFORMS = {
    'grad': lambda f, *t: func.grad(total(f), every(t))(*t),
    'vjp': lambda f, *t: func.vjp(f, *t)[1](f(*t)),
    'jvp': push_forward,
    'jacrev': lambda f, *t: func.jacrev(f, every(t))(*t),
    'jacfwd': lambda f, *t: func.jacfwd(f, every(t))(*t),
    'hessian': lambda f, *t: func.hessian(total(f), every(t))(*t),
    'grad of grad': lambda f, *t: func.grad(total(func.grad(total(f))), every(t))(*t),
    'jvp of jvp': lambda f, *t: push_forward(lambda *t: push_forward(f, *t), *t),
    'jvp of jvp of jvp': lambda f, *t: push_forward(lambda *t: push_forward(lambda *t: push_forward(f, *t), *t), *t),
    'jvp of grad': lambda f, *t: push_forward(func.grad(total(f), every(t)), *t),
    'grad of jvp': lambda f, *t: func.grad(total(lambda *t: push_forward(f, *t)[1]), every(t))(*t),
    'dual tensors': dual,
    'grad one by one': one_by_one(lambda f, t: func.grad(total(f))(t)),
    'jvp one by one': one_by_one(push_forward),
    'dual tensors one by one': one_by_one(dual),
}


@pytest.mark.parametrize('name', TRANSFORMS)
def test_transform(name, functions):
    function, truth, tensors = functions
    check(TRANSFORMS[name], function, truth, *tensors)


MAPS = {
    'vmap': lambda f, dims, *t: func.vmap(f, dims)(*t),
    'vmap in chunks': lambda f, dims, *t: func.vmap(f, dims, chunk_size=2)(*t),
    'vmap of grad': lambda f, dims, *t: func.vmap(func.grad(total(f), every(t)), dims)(*t),
    'vmap of jvp': lambda f, dims, *t: func.vmap(lambda *t: push_forward(f, *t), dims)(*t),
    'grad of vmap': lambda f, dims, *t: func.grad(total(func.vmap(f, dims)), every(t))(*t),
    'jvp of vmap': lambda f, dims, *t: push_forward(func.vmap(f, dims), *t),
}


@pytest.mark.parametrize('name', MAPS)
def test_map(name, functions):
    """Maps over any of the tensors. The others are shared."""
    function, truth, tensors = functions
    for dims in list(product((None, 0), repeat=len(tensors)))[1:]:
        mapped = (t if d is None else torch.stack([t, t.sin(), t.cos()]) for t, d in zip(tensors, dims, strict=True))
        check(MAPS[name], function, truth, dims, *mapped)


def test_map_over_other_dimensions_and_twice(functions):
    function, truth, tensors = functions
    mapped = [torch.stack([t, t.sin(), t.cos()], -1) for t in tensors]
    check(lambda f, *t: func.vmap(f, -1, 1)(*t), function, truth, *mapped)
    mapped = [torch.stack([t, t.exp()], 1) for t in mapped]
    check(lambda f, *t: func.vmap(func.vmap(f, -1), 1)(*t), function, truth, *mapped)


def test_map_over_nothing(functions):
    function, _, tensors = functions
    expected = function(*tensors)
    for dims in list(product((None, 0), repeat=len(tensors)))[1:]:
        mapped = [t if d is None else t.new_empty(0, *t.shape) for t, d in zip(tensors, dims, strict=True)]
        assert func.vmap(function, dims)(*mapped).shape == (0, *expected.shape)


def test_gradients_for_each_sample_are_those_of_ordinary_autograd(functions):
    function, truth, tensors = functions
    samples = [[(s * t).requires_grad_() for t in tensors] for s in (1, 2, -1)]
    mapped = func.vmap(func.grad(total(function), every(tensors)))(*map(torch.stack, zip(*samples, strict=True)))
    for i, sample in enumerate(samples):
        for actual, expected in zip(mapped, torch.autograd.grad(total(truth)(*sample), sample), strict=True):
            torch.testing.assert_close(actual[i], expected)


def test_gradcheck_in_every_mode(functions):
    function, _, tensors = functions
    tensors = [tensor.requires_grad_() for tensor in tensors]
    modes = dict(check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert torch.autograd.gradcheck(function, tensors, **modes)
    # Only along random directions. Other tests check all directions, without these modes.
    modes = dict(check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, **modes)


def test_forward_gradient_is_the_product_rule(backend):
    name, device = backend
    x, t = torch.randn(2, 2, 4, 6, 5, dtype=torch.float64, device=device)
    k, s = torch.randn(2, 2, 2, 3, 3, 6, 5, dtype=torch.float64, device=device)

    def function(input, kernel):
        return involution2d(input, kernel, backend=name)

    output, tangent = func.jvp(function, (x, k), (t, s))
    assert torch.equal(output, function(x, k))
    torch.testing.assert_close(tangent, function(t, k) + function(x, s))
