"""Random cases of every public operator and of the layer, against loops: equal, or a documented error.

Hypothesis draws the same cases in every run. ``--cases N`` sets their number for each backend (default: 100).
"""

from dataclasses import dataclass
from math import prod

import numpy as np
import pytest
import torch
from helpers import TOLERANCE, check_cases
from hypothesis import strategies as st
from oracle import Geometry, generate, generation_gradients, input_gradient, involution, kernel_gradient
from torch import nn
from torch.autograd import forward_ad

from mmrednet.layers import Involution
from mmrednet.ops import fused_involution2d, involution1d, involution2d, involution3d, window_product2d
from mmrednet.ops.tolerances import FUSED

MODES = (
    'gradients',
    'gradients',
    'gradients',
    'no_grad',
    'inference_mode',
    'autocast',
    'vmap',
    'vmap of gradients',
    'jvp',
)
LAYOUTS = (
    'contiguous',
    'contiguous',
    'permuted',
    'channels last',
    'sliced',
    'flipped',
    'offset',
    'expanded',
    'zeros',
    'overlapping',
)
SHARED = ('expanded', 'zeros', 'overlapping')  # elements of these tensors share memory
FAULTS = ('dtype', 'rank', 'groups', 'size', 'type', 'stride', 'backend')


@dataclass
class Case:
    """What hypothesis draws: an operator's arguments, and how it is called."""

    operator: str
    geometry: Geometry
    same: bool  # padding=None
    shapes: list
    dtype: torch.dtype
    layouts: list
    mode: str
    chosen: list  # the tensors that need gradients, are mapped by vmap or have a tangent
    dim: int  # that vmap maps over
    fault: str | None
    seed: int


@st.composite
def cases(draw, operator):
    """Draws a case of an operator."""
    axes = {'involution1d': 1, 'involution3d': 3}.get(operator, 2)

    def ints(least, *most):
        """Draws a number for each axis, mostly from small ranges."""
        high = draw(st.sampled_from(most))
        return tuple(draw(st.integers(least, high)) for _ in range(axes))

    kernel_size, dilation = ints(1, 3, 3, 5, 7 if axes < 3 else 3), ints(1, 1, 2, 4)
    stride = ints(1, 1, 2, 5)
    reach = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    same = draw(st.booleans())
    padding = tuple(r // 2 for r in reach) if same else ints(0, 0, 2, 6)
    size = ints(1, 4, 9, *((20, 40) if axes < 3 else ()))
    n, groups, channels = (draw(st.sampled_from(v)) for v in ((1, 2, 1, 3, 0), (1, 2, 3), (1, 2, 4, 7, 16, 19)))
    geometry = Geometry(kernel_size, stride, padding, dilation, groups)
    outputs = tuple(max(1, count) for count in geometry.outputs(size))
    image, output = (n, groups * channels, *size), (n, groups * channels, *outputs)
    shapes = {
        'window_product2d': [output, image],
        'fused_involution2d': [
            image,
            (n, 3, *outputs),
            (groups * prod(kernel_size), 3, 1, 1),
            (groups * prod(kernel_size),),
        ],
    }.get(operator, [image, (n, groups, *kernel_size, *outputs)])
    if operator == 'fused_involution2d' and draw(st.booleans()):
        shapes.pop()  # no bias
    return Case(
        operator,
        geometry,
        same,
        shapes,
        draw(st.sampled_from(list(TOLERANCE))),
        [draw(st.sampled_from(LAYOUTS)) for _ in (*shapes, 'gradient')],
        draw(st.sampled_from(MODES)),
        draw(st.lists(st.booleans(), min_size=len(shapes), max_size=len(shapes)).filter(any)),
        draw(st.integers(0, 1)),
        draw(st.sampled_from(FAULTS)) if draw(st.integers(0, 9)) == 0 else None,
        draw(st.integers(0, 2**31)),
    )


def lay_out(shape, layout, dtype, generator):
    """Returns random numbers in a memory layout."""

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    axes = len(shape)
    axis = int(torch.randint(axes, (), generator=generator))
    if layout == 'permuted':
        order = torch.randperm(axes, generator=generator).tolist()
        return normal(*(shape[i] for i in order)).permute(np.argsort(order).tolist())
    if layout == 'channels last':
        return normal(shape[0], *shape[2:], *shape[1:2]).movedim(-1, 1) if axes > 1 else normal(*shape)
    if layout == 'sliced':
        wider = [size + 2 for size in shape]
        wider[axis] = 2 * shape[axis] + 2
        return normal(*wider)[tuple(slice(1, 1 + n * (s := 1 + (i == axis)), s) for i, n in enumerate(shape))]
    if layout == 'flipped':
        return normal(*shape).flip(axis)
    if layout == 'offset':
        return normal(prod(shape) + 3)[3:].view(shape)
    if layout == 'expanded':
        return normal(*(1 if i == axis else size for i, size in enumerate(shape))).expand(shape)
    if layout == 'zeros':
        return normal(1).expand(shape)
    if layout == 'overlapping':
        strides = torch.randint(3, (axes,), generator=generator).tolist()
        return normal(1 + sum(s * max(n - 1, 0) for s, n in zip(strides, shape, strict=True))).as_strided(
            shape, strides
        )
    return normal(*shape)


def call(case, tensors, backend, stride=None):
    """Calls the operator."""
    kernel_size, strides, padding, dilation, groups = case.geometry
    if case.operator == 'involution1d':
        strides, padding, dilation = strides[0], padding[0], dilation[0]
    rest = (strides if stride is None else stride, None if case.same else padding, dilation)
    if case.operator == 'fused_involution2d':
        return fused_involution2d(*tensors, *[None] * (4 - len(tensors)), kernel_size, *rest, backend=backend)
    if case.operator == 'window_product2d':
        return window_product2d(*tensors, kernel_size, groups, *rest, backend=backend)
    function = {'involution1d': involution1d, 'involution2d': involution2d, 'involution3d': involution3d}[case.operator]
    return function(*tensors, *rest, backend=backend)


def expect(case, tensors):
    """Returns the output, by loops."""
    if case.operator == 'window_product2d':
        return kernel_gradient(*tensors, case.geometry)
    x, kernel = tensors[0], tensors[1]
    if case.operator == 'fused_involution2d':
        kernel = generate(*tensors[1:3], tensors[3] if len(tensors) > 3 else None, case.geometry)
    return involution(x, kernel, case.geometry)


def expect_gradients(case, tensors, grad):
    """Returns the gradients of all tensors, by loops."""
    g = case.geometry
    if case.operator == 'window_product2d':
        query, key = tensors
        return involution(key, grad, g), input_gradient(query, grad, key.shape[2:], g)
    x, *rest = tensors
    if case.operator != 'fused_involution2d':
        return input_gradient(grad, rest[0], x.shape[2:], g), kernel_gradient(grad, x, g)
    kernel = generate(*rest[:2], rest[2] if len(rest) > 2 else None, g)
    grads = generation_gradients(kernel_gradient(grad, x, g), *rest[:2])
    return input_gradient(grad, kernel, x.shape[2:], g), *grads[: len(rest)]


def expect_tangent(case, tensors, tangents):
    """Returns the output's tangent: the operators are linear in each of their tensors, but for the bias."""
    if case.operator != 'fused_involution2d':
        return sum(
            expect(case, [t if i == j else v for j, (v, t) in enumerate(zip(tensors, tangents, strict=True))])
            for i in range(2)
        )
    x, features, weight, *bias = tensors
    dx, dfeatures, dweight, *dbias = tangents
    return (
        expect(case, [dx, features, weight, *bias])
        + expect(case, [x, dfeatures, weight])
        + expect(case, [x, features, dweight, *dbias])
    )


def compare(case, actual, function, *groups, dtype=None, terms=1):
    """Compares tensors with what a function of lists of arrays returns. Its value for their sizes is the scale.

    ``terms`` is 2 for a sum of results that were rounded before.
    """
    dtype = dtype or case.dtype
    arrays = [[t.detach().to(dtype).double().numpy() for t in group] for group in groups]
    exact = function(*arrays)
    scale = function(*([np.abs(array) for array in group] for group in arrays))
    single = not isinstance(exact, tuple)
    factor = terms * {'fused_involution2d': FUSED, 'involution3d': 2}.get(case.operator, 1)
    if single:
        actual, exact, scale = [actual], [exact], [scale]
    for a, e, s in zip(actual, exact, scale, strict=True):
        if a is None:
            continue
        assert tuple(a.shape) == e.shape
        limits = torch.finfo(dtype)
        # Autocast computes in another dtype, and rounds the gradients once more.
        tolerance = TOLERANCE[dtype] + (TOLERANCE[a.dtype] if a.dtype != dtype else 0)
        allowed = factor * tolerance * s + limits.smallest_normal * limits.eps
        error = np.abs(a.detach().double().numpy() - e)
        assert (error <= allowed).all(), f'{error.max()} of {allowed[error > allowed].min()}'


def is_defined(case):
    """Returns whether the geometry is one for which the operator is documented."""
    g, image = case.geometry, case.shapes[1 if case.operator == 'window_product2d' else 0]
    odd = any(d * (k - 1) % 2 for k, d in zip(g.kernel_size, g.dilation, strict=True))
    return not (case.same and odd) and min(g.outputs(image[2:])) > 0


def spoil(case, tensors, backend):
    """Calls the operator with one wrong argument, and returns the expected types of errors."""
    first, second, *rest = tensors
    stride = None
    if case.fault == 'dtype':
        first, second = (first.int(), second.int()) if case.seed % 2 else (first, second.to(torch.complex64))
    elif case.fault == 'rank':
        second = second[None]
    elif case.fault == 'groups':
        second = second[:, :0]
    elif case.fault == 'size':
        wider = [torch.cat([t, t[..., :1]], -1) for t in (first, second)]
        first, second = (wider[0], second) if case.operator == 'window_product2d' else (first, wider[1])
    elif case.fault == 'type':
        first = first.tolist()
    elif case.fault == 'stride':
        stride = (0, -1, 1.5, 'two', (1, 2, 3, 4))[case.seed % 5]
    elif case.fault == 'backend':
        backend = 'gpu'
    with pytest.raises((TypeError, ValueError)):
        call(case, [first, second, *rest], backend, stride)


def run_case(case, backend):
    """Calls the operator as the case has it, and compares all results."""
    generator = torch.manual_seed(case.seed)
    mapped = case.mode.startswith('vmap') and case.fault is None and is_defined(case)
    shapes = [
        (3, *shape) if mapped and chosen else shape for shape, chosen in zip(case.shapes, case.chosen, strict=True)
    ]
    tensors = [lay_out(*given, case.dtype, generator) for given in zip(shapes, case.layouts[:-1], strict=True)]
    if not is_defined(case):
        with pytest.raises(ValueError):
            call(case, tensors, backend)
        return None
    if case.fault is not None:
        return spoil(case, tensors, backend)
    size = case.geometry.outputs(case.shapes[1 if case.operator == 'window_product2d' else 0][2:])
    grad_shape = (*case.shapes[0][:2], *size)
    if case.operator == 'window_product2d':
        grad_shape = (case.shapes[0][0], case.geometry.groups, *case.geometry.kernel_size, *size)
    grad = lay_out(grad_shape, case.layouts[-1], case.dtype, generator)
    return CALLS[case.mode](case, tensors, grad, backend)


def with_gradients(case, tensors, grad, backend, dtype=None):
    tensors = [t.detach().requires_grad_(chosen) for t, chosen in zip(tensors, case.chosen, strict=True)]
    out = call(case, tensors, backend)
    needed = [t for t in tensors if t.requires_grad]
    found = iter(torch.autograd.grad(out, needed, grad.to(out.dtype)))
    compare(case, out, lambda t: expect(case, t), tensors, dtype=dtype)
    grads = [next(found) if t.requires_grad else None for t in tensors]
    compare(case, grads, lambda t, g: expect_gradients(case, t, *g), tensors, [grad], dtype=dtype)


def without_gradients(case, tensors, grad, backend):
    with torch.no_grad() if case.mode == 'no_grad' else torch.inference_mode():
        out = call(case, tensors, backend)
    assert not out.requires_grad
    compare(case, out, lambda t: expect(case, t), tensors)


def with_autocast(case, tensors, grad, backend):
    dtype = (torch.bfloat16, torch.float16)[case.seed % 2]
    with torch.autocast('cpu', dtype):
        with_gradients(case, tensors, grad, backend, case.dtype if case.dtype is torch.float64 else dtype)


def with_vmap(case, tensors, grad, backend):
    gradients = case.mode == 'vmap of gradients'

    def function(*given):
        if not gradients:
            return (call(case, given, backend),)
        out, pull = torch.func.vjp(lambda *t: call(case, t, backend), *given)
        return out, *pull(grad)

    moved = [t.movedim(0, case.dim) if chosen else t for t, chosen in zip(tensors, case.chosen, strict=True)]
    results = torch.func.vmap(function, tuple(case.dim if chosen else None for chosen in case.chosen))(*moved)
    for i in range(3):
        given = [t[i] if chosen else t for t, chosen in zip(tensors, case.chosen, strict=True)]
        compare(case, results[0][i], lambda t: expect(case, t), given)
        if gradients:
            found = [result[i] for result in results[1:]]
            compare(case, found, lambda t, g: expect_gradients(case, t, *g), given, [grad])


def with_jvp(case, tensors, grad, backend):
    # torch makes no dual number whose elements share memory.
    tensors = [t.contiguous() if layout in SHARED else t for t, layout in zip(tensors, case.layouts, strict=False)]
    tangents = [torch.randn_like(t) * chosen for t, chosen in zip(tensors, case.chosen, strict=True)]
    with forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(t, v) if chosen else t
            for t, v, chosen in zip(tensors, tangents, case.chosen, strict=True)
        ]
        out, tangent = forward_ad.unpack_dual(call(case, duals, backend))
    compare(case, out, lambda t: expect(case, t), tensors)
    compare(case, tangent, lambda t, v: expect_tangent(case, t, v), tensors, tangents, terms=2)


CALLS = {
    'gradients': with_gradients,
    'no_grad': without_gradients,
    'inference_mode': without_gradients,
    'autocast': with_autocast,
    'vmap': with_vmap,
    'vmap of gradients': with_vmap,
    'jvp': with_jvp,
}
OPERATORS = ('involution2d', 'fused_involution2d', 'window_product2d', 'involution1d', 'involution3d')
BACKENDS = ('reference', 'torch', 'cpu', None)


PARTS = len(OPERATORS) + 1  # the cases of a backend are shared by the operators and the layer


@pytest.mark.parametrize('operator', OPERATORS)
@pytest.mark.parametrize('backend', BACKENDS)
def test_operators(request, operator, backend):
    check_cases(request, cases(operator), lambda case: run_case(case, backend), PARTS)


@st.composite
def layers(draw):
    """Draws the arguments of an involution layer, its input's shape, its mode, its dtype and a seed."""
    pairs = [draw(st.tuples(*[st.sampled_from(values)] * 2)) for values in ((1, 3, 5, 2), (1, 1, 2, 3), (1, 1, 2))]
    groups, group_channels = draw(st.integers(1, 3)), draw(st.sampled_from((1, 2, 5, 16)))
    channels = groups * group_channels
    options = dict(
        zip(('kernel_size', 'stride', 'dilation'), pairs, strict=True),
        channels=channels,
        group_channels=group_channels,
        reduction_ratio=draw(st.integers(1, channels)),
        padding=draw(st.none() | st.tuples(*[st.integers(0, 3)] * 2)),
        in_channels=draw(st.sampled_from((None, channels, 4))),
        bias=draw(st.booleans()),
        norm_layer=draw(st.sampled_from((None, nn.BatchNorm2d))),
        fused=draw(st.sampled_from((None, True, False))),
    )
    shape = draw(st.integers(1, 2)), options['in_channels'] or channels, *draw(st.tuples(*[st.integers(1, 12)] * 2))
    return options, shape, draw(st.sampled_from((torch.float64, torch.float32))), draw(st.integers(0, 2**31))


def expect_layer(values, options, geometry):
    """Algorithm 1 of the paper in evaluation mode, from the input ``x`` and the layer's parameters by name."""

    def convolve(x, name):
        x = np.einsum('kc,ncij->nkij', values[f'{name}.weight'][:, :, 0, 0], x)
        bias = values.get(f'{name}.bias')
        return x if bias is None else x + bias[:, None, None]

    x = convolve(values['x'], 'projection') if 'projection.weight' in values else values['x']
    cells = x
    for axis in (2, 3):  # the average of each cell of the pixels that are the middle of a window
        k, s, p, d = (numbers[axis - 2] for numbers in geometry[:4])
        margin = d * (k - 1) - 2 * p
        middle = cells.take(range(margin // 2, x.shape[axis] - margin + margin // 2), axis)
        starts = range(0, middle.shape[axis], s)
        ends = (min(start + s, middle.shape[axis]) for start in starts)
        parts = [middle.take(range(*cell), axis).mean(axis) for cell in zip(starts, ends, strict=True)]
        cells = np.stack(parts, axis)
    features = convolve(cells, 'conv1.conv')
    if 'conv1.bn.weight' in values:
        mean, variance, weight, bias = (
            values[f'conv1.bn.{name}'][:, None, None] for name in ('running_mean', 'running_var', 'weight', 'bias')
        )
        features = (features - mean) / np.sqrt(variance + 1e-5) * weight + bias
    kernel = convolve(np.maximum(features, 0), 'conv2.conv')
    shape = kernel.shape[0], geometry.groups, *geometry.kernel_size, *kernel.shape[2:]
    return involution(x, kernel.reshape(shape), geometry)


def run_layer(case, backend):
    """Compares a layer's output, and its derivative along a random direction, with the loops in float64."""
    options, shape, dtype, seed = case
    reach = [d * (k - 1) for k, d in zip(options['kernel_size'], options['dilation'], strict=True)]
    padding = options['padding'] or tuple(r // 2 for r in reach)
    groups = options['channels'] // options['group_channels']
    geometry = Geometry(options['kernel_size'], options['stride'], padding, options['dilation'], groups)
    defined = any(r % 2 for r in reach) is False if options['padding'] is None else True
    defined = defined and all(2 * p <= r for p, r in zip(padding, reach, strict=True))
    if not defined:
        with pytest.raises(ValueError, match='padding'):
            Involution(**options, backend=backend)
        return
    torch.manual_seed(seed)
    layer = Involution(**options, backend=backend).to(dtype).eval()
    with torch.no_grad():
        for name, value in layer.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.randn_like(value).abs() + 0.5 if name.endswith('var') else torch.randn_like(value))
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    if min(geometry.outputs(shape[2:])) < 1:
        with pytest.raises((ValueError, RuntimeError)):  # torch's pooling refuses an empty image, too
            layer(x)
        return
    learned = {'x': x, **dict(layer.named_parameters())}
    values = {name: value.double().numpy() for name, value in layer.state_dict().items()}
    values |= {name: value.detach().double().numpy() for name, value in learned.items()}
    out = layer(x)
    expected = expect_layer(values, options, geometry)
    atol = (
        dict({torch.float64: 1e-12, torch.float32: 1e-5})[dtype]
        * prod(options['kernel_size'])
        * (1 + np.abs(expected).max())
    )
    np.testing.assert_allclose(out.detach().double().numpy(), expected, rtol=0, atol=atol)
    with torch.no_grad():  # fused=None fuses here
        np.testing.assert_allclose(layer(x).double().numpy(), expected, rtol=0, atol=atol)
    if dtype is torch.float32:
        return
    weights = torch.randn_like(out)
    grads = torch.autograd.grad(out, learned.values(), weights)
    directions = {name: torch.randn_like(value) for name, value in learned.items()}
    derivative = sum((g * v).sum().item() for g, v in zip(grads, directions.values(), strict=True))
    ahead, behind = (
        expect_layer({**values, **{n: values[n] + step * v.numpy() for n, v in directions.items()}}, options, geometry)
        for step in (1e-6, -1e-6)
    )
    terms = (ahead - behind) / 2e-6 * weights.numpy()
    assert abs(terms.sum() - derivative) <= 1e-6 * (1 + np.abs(terms).sum() + np.abs(expected).sum())


@pytest.mark.parametrize('backend', BACKENDS)
def test_layer(request, backend):
    check_cases(request, layers(), lambda case: run_layer(case, backend), PARTS)
