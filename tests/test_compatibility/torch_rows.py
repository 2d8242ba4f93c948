"""What PyTorch does with a module."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch._dynamo.testing
from test_compatibility.rows import SHALLOW, Network, rows_of
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

row = rows_of('Gradients')


def loss_of(model):
    """Returns the loss as a function of one small parameter and an image, and the parameter."""
    name = 'layer1.0.bn1.weight'

    def loss(value, image):
        return functional_call(model, {name: value}, (image,))[0].square().mean()

    return loss, model.get_parameter(name).detach()


@row
def gradients(network: Network):
    """`loss.backward()`: every parameter and the image have a gradient"""
    model, x = network.build(training=True), network.image().requires_grad_()
    model(x)[0].square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.norm() > 0, name
    assert x.grad.norm() > 0


@row
def anomaly(network: Network):
    """`torch.autograd.set_detect_anomaly(True)`"""
    with torch.autograd.set_detect_anomaly(True):
        gradients(network)


@row
def deterministic(network: Network):
    """`torch.use_deterministic_algorithms(True)`: the same bits twice"""

    def run():
        model = network.build(training=True)
        model(network.image())[0].square().mean().backward()
        return [parameter.grad for parameter in model.parameters()]

    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


@row
def func_grad(network: Network):
    """`torch.func.grad` through `functional_call`: as autograd's"""
    model, x = network.build(), network.image()
    loss, value = loss_of(model)
    model(x)[0].square().mean().backward()
    assert_close(torch.func.grad(loss)(value, x), model.get_parameter('layer1.0.bn1.weight').grad)


@row
def per_sample(network: Network):
    """`torch.func.vmap(grad(...))`: per-sample gradients, as a loop's"""
    loss, value = loss_of(network.build())
    x = network.image(3, 1, 3, 64, 64)
    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(value, x)
    assert_close(gradients, torch.stack([torch.func.grad(loss)(value, image) for image in x]), rtol=1e-4, atol=1e-6)


@row
def ensemble(network: Network):
    """`torch.func.stack_module_state`: an ensemble in one `vmap`"""
    models = [network.build(), network.build()]
    with torch.no_grad():
        models[1].layer1[0].conv1.weight.mul_(2)
    parameters, buffers = torch.func.stack_module_state(models)
    x = network.image()
    together = torch.func.vmap(lambda p, b: functional_call(models[0], (p, b), (x,))[0])(parameters, buffers)
    assert_close(together, torch.stack([model(x)[0] for model in models]), rtol=1e-4, atol=1e-5)


def exact_loss(network):
    model = network.build(**SHALLOW).double()
    loss, value = loss_of(model)
    x = network.image(1, 3, 32, 32, dtype=torch.float64)
    return lambda value: loss(value, x), value


@row
def jvp(network: Network):
    """`torch.func.jvp`, forward-mode: the gradient times the direction"""
    loss, value = exact_loss(network)
    direction = torch.linspace(-1, 1, len(value), dtype=value.dtype)
    assert_close(torch.func.jvp(loss, (value,), (direction,))[1], torch.func.grad(loss)(value) @ direction)


@row
def jacobians(network: Network):
    """`torch.func.jacrev` and `jacfwd`: the same"""
    loss, value = exact_loss(network)
    assert_close(torch.func.jacrev(loss)(value), torch.func.jacfwd(loss)(value))


@row
def hessian(network: Network):
    """`torch.func.hessian`: as `torch.autograd.functional.hessian`'s"""
    loss, value = exact_loss(network)
    actual = torch.func.hessian(loss)(value)
    assert actual.norm() > 0
    assert_close(actual, torch.autograd.functional.hessian(loss, value))


@row
def penalty(network: Network):
    """Gradients of gradients (`create_graph=True`), as a gradient penalty needs them"""
    model, x = network.build(**SHALLOW), network.image().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[0].square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.norm() > 0


@row
def image_alone(network: Network):
    """A frozen network and the gradient of the image alone, as for adversarial images"""
    model, x = network.build(), network.image().requires_grad_()
    expected = torch.autograd.grad(model(x)[0].square().sum(), x)[0]
    model.requires_grad_(False)
    assert_close(torch.autograd.grad(model(x)[0].square().sum(), x)[0], expected)


@row
def offloaded(network: Network):
    """`torch.autograd.graph.save_on_cpu`: what is saved for the backward pass goes elsewhere"""
    model, x = network.build(), network.image().requires_grad_()
    expected = torch.autograd.grad(model(x)[0].square().sum(), x)[0]
    with torch.autograd.graph.save_on_cpu():
        loss = model(x)[0].square().sum()
    assert_close(torch.autograd.grad(loss, x)[0], expected)


@row
def gradient_hooks(network: Network):
    """`register_post_accumulate_grad_hook`: an optimizer inside the backward pass"""
    model, count = network.build(training=True), []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: count.append(setattr(parameter, 'grad', None)))
    model(network.image())[0].square().mean().backward()
    assert len(count) == len(list(model.parameters())) and all(p.grad is None for p in model.parameters())


row = rows_of('Tracing and compiling')


def same(actual, model, x):
    """Holds what a traced network returned against the network."""
    with torch.no_grad():
        expected = model(x)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, rtol=1e-4, atol=1e-4)


@row
def fx(network: Network):
    """`torch.fx.symbolic_trace`, then other sizes, in training and evaluation"""
    for training in (False, True):
        model = network.build(training, out_indices=(1, 3))
        traced = torch.fx.symbolic_trace(model)
        for size in ((2, 3, 64, 96), (2, 3, 65, 33)):
            same(traced(network.image(*size)), model, network.image(*size))


@row
def fx_fuse(network: Network):
    """`torch.fx.experimental.optimization.fuse`: BatchNorms go into convolutions"""
    from torch.fx.experimental.optimization import fuse

    model = network.build()
    fused = fuse(model)
    # What follows an involution cannot go into it.
    left = sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert left < sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    same(fused(network.image()), model, network.image())
    return f'{left} of {sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())} are left'


@row
def fx_shapes(network: Network):
    """`torch.fx` passes: `ShapeProp`, and `optimize_for_inference`"""
    from torch.fx.experimental.optimization import optimize_for_inference
    from torch.fx.passes.shape_prop import ShapeProp

    model = network.build()
    traced = torch.fx.symbolic_trace(model)
    ShapeProp(traced).propagate(network.image())
    assert all('tensor_meta' in node.meta for node in traced.graph.nodes if node.op == 'call_module')
    with torch.no_grad():
        same(optimize_for_inference(model)(network.image()), model, network.image())


@row
def extractor(network: Network):
    """`torchvision.models.feature_extraction.create_feature_extractor`, by names of modules"""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    model = network.build()
    assert {'layer2', 'layer2.0.conv2'} <= {
        '.'.join(name.split('.')[:n]) for name in get_graph_node_names(model)[1] for n in (1, 3)
    }
    features = create_feature_extractor(model, ['layer2', 'layer4'])(network.image())
    assert_close(features['layer4'], model(network.image())[0])


LOAD = """
import sys, torch
if sys.argv[2] == 'mmrednet.ops': import mmrednet.ops
x, expected = torch.load(sys.argv[1] + '/expected.pt')
with torch.no_grad():
    {code}
torch.testing.assert_close(model(x)[0], expected, rtol=1e-4, atol=1e-4)
"""


def in_fresh_process(network, model, code):
    """Loads a saved network with torch alone, and for RedNet its operators."""
    x = network.image()
    with torch.no_grad():
        torch.save((x, model(x)[0]), network.folder / 'expected.pt')
    operators = 'mmrednet.ops' if network.name.startswith('RedNet') else ''
    command = [sys.executable, '-c', LOAD.format(code=code), str(network.folder), operators]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr.strip().splitlines()[-1])


@row
def jit_trace(network: Network):
    """`torch.jit.trace`, which checks itself, saved and loaded in a fresh process"""
    model = network.build()
    torch.jit.trace(model, network.image()).save(network.folder / 'traced.pt')
    in_fresh_process(network, model, 'model = torch.jit.load(sys.argv[1] + "/traced.pt")')


@row
def jit_trace_training(network: Network):
    """`torch.jit.trace`: the trace has the network's gradients, and takes other sizes"""
    model = network.build()
    traced = torch.jit.trace(model, network.image())
    x = network.image(1, 3, 96, 65)
    gradients = [torch.autograd.grad(m(x)[0].square().mean(), list(model.parameters())) for m in (traced, model)]
    for a, e in zip(*gradients, strict=True):
        assert_close(a, e, rtol=1e-3, atol=1e-5)


@row
def jit_script(network: Network):
    """`torch.jit.script`"""
    model = network.build()
    same(torch.jit.script(model)(network.image()), model, network.image())


@row
def jit_freeze(network: Network):
    """`torch.jit.freeze` and `optimize_for_inference` of a trace"""
    model = network.build()
    with torch.no_grad():
        traced = torch.jit.trace(model, network.image())
        same(torch.jit.optimize_for_inference(torch.jit.freeze(traced))(network.image()), model, network.image())


@row
def onnx_former_exporter(network: Network):
    """`torch.onnx.export(dynamo=False)` with any batch size, height and width, in ONNX Runtime"""
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnx')
    model, path = network.build(**SHALLOW), network.folder / 'former.onnx'
    axes = dict(images=dict(enumerate('nchw')))
    torch.onnx.export(model, (network.image(),), path, dynamo=False, input_names=['images'], dynamic_axes=axes)
    session = runtime.InferenceSession(path)
    for size in ((2, 3, 64, 64), (1, 3, 97, 65)):
        x = network.image(*size)
        (actual,) = session.run(None, {'images': x.numpy()})
        assert_close(torch.from_numpy(actual), model(x)[0], rtol=1e-3, atol=1e-4)


@row
def export_any_size(network: Network):
    """`torch.export` with any batch size, height and width that 32 divides"""
    model = network.build(**SHALLOW)
    batch, height, width = (torch.export.Dim(name, min=1, max=32) for name in ('batch', 'height', 'width'))
    shapes = ({0: batch, 2: 32 * height, 3: 32 * width},)
    program = torch.export.export(model, (network.image(),), dynamic_shapes=shapes)
    same(program.module()(network.image(3, 3, 96, 128)), model, network.image(3, 3, 96, 128))


@row
def export(network: Network):
    """`torch.export` with any batch size, saved and loaded in a fresh process"""
    model = network.build(**SHALLOW)
    dynamic = ({0: torch.export.Dim('batch', min=1, max=64)},)
    program = torch.export.export(model, (network.image(),), dynamic_shapes=dynamic)
    torch.export.save(program, network.folder / 'exported.pt2')
    same(program.module()(network.image(5, 3, 64, 64)), model, network.image(5, 3, 64, 64))
    in_fresh_process(network, model, 'model = torch.export.load(sys.argv[1] + "/exported.pt2").module()')


@row
def decompose(network: Network):
    """`torch.export` for training, decomposed to core operators"""
    model = network.build(training=True, **SHALLOW)
    program = torch.export.export(model, (network.image(),)).run_decompositions()
    assert len(program.graph.nodes) > 100


SIZES = ((64, 96), (128, 64), (96, 160), (160, 160))


def compiled(network, training, backend, sizes=SIZES, **arguments):
    """Compiles whole and runs several sizes; returns how often it compiled."""
    torch._dynamo.reset()
    # In float64, since rounding in another order may choose another side of a ReLU, which counts in the gradients.
    model = network.build(training, **arguments).double()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    fast = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    reference = copy.deepcopy(model)
    for size in sizes:
        x = network.image(2, 3, *size, dtype=torch.float64)
        with torch.set_grad_enabled(training):
            results = [fast(x), reference(x)]
        if training:
            results = [
                (*outs, *torch.autograd.grad(outs[0].square().mean(), list(m.parameters())))
                for outs, m in zip(results, (model, reference), strict=True)
            ]
        for actual, expected in zip(*results, strict=True):
            assert (actual - expected).norm() <= 1e-9 * expected.norm() + 1e-12
    torch._dynamo.reset()
    return f'{counter.frame_count} {"graph" if counter.frame_count == 1 else "graphs"} for {len(sizes)} sizes'


@row
def compile_eager(network: Network):
    """`torch.compile(fullgraph=True, dynamic=True, backend='eager')`, inference"""
    return compiled(network, False, 'eager', **SHALLOW)


@row
def compile_aot(network: Network):
    """`torch.compile(..., backend='aot_eager')`, inference"""
    return compiled(network, False, 'aot_eager', **SHALLOW)


@row
def compile_aot_training(network: Network):
    """`torch.compile(..., backend='aot_eager')`, training: the same gradients"""
    return compiled(network, True, 'aot_eager', **SHALLOW)


@row
def compile_in_place(network: Network):
    """`model.compile()`, sizes of any parity in turn"""
    torch._dynamo.reset()
    model = network.build(**SHALLOW)
    expected = copy.deepcopy(model)
    model.compile(backend='eager')
    for size in ((64, 64), (65, 64), (33, 95)):
        with torch.no_grad():
            same(model(network.image(1, 3, *size)), expected, network.image(1, 3, *size))
    torch._dynamo.reset()


slow_row = rows_of('Compiling with inductor', slow=True)


@slow_row
def inductor(network: Network):
    """`torch.compile(fullgraph=True, dynamic=True)`, inference"""
    return compiled(network, False, 'inductor', **SHALLOW)


@slow_row
def inductor_training(network: Network):
    """`torch.compile(fullgraph=True, dynamic=True)`, training: the same gradients"""
    return compiled(network, True, 'inductor', SIZES[:3], **SHALLOW)


@slow_row
def aot_inductor(network: Network):
    """`torch._inductor.aoti_compile_and_package`, loaded in a fresh process"""
    model = network.build(**SHALLOW)
    with torch.no_grad():
        program = torch.export.export(model, (network.image(),))
        torch._inductor.aoti_compile_and_package(program, package_path=str(network.folder / 'model.pt2'))
    in_fresh_process(network, model, 'model = torch._inductor.aoti_load_package(sys.argv[1] + "/model.pt2")')


row = rows_of('A module of PyTorch')


@row
def copies(network: Network):
    """`copy.deepcopy` and `pickle`"""
    model, x = network.build(), network.image()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x)[0], model(x)[0])


@row
def whole(network: Network):
    """`torch.save(model)`: the whole network in a file"""
    model, file = network.build(), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(network.image())[0], model(network.image())[0])


@row
def states(network: Network):
    """`state_dict`, saved and loaded with `weights_only`, also with `assign=True` and `mmap=True`"""
    model = network.build()
    path = network.folder / 'state.pth'
    torch.save(model.state_dict(), path)
    for assign in (False, True):
        twin = network.build()
        nn.init.zeros_(twin.layer1[0].bn1.weight)
        twin.load_state_dict(torch.load(path, weights_only=True, mmap=True), assign=assign)
        assert torch.equal(twin(network.image())[0], model(network.image())[0])


@row
def meta(network: Network):
    """`torch.device('meta')`, then `to_empty` and `load_state_dict`"""
    model = network.build()
    with torch.device('meta'):
        twin = network.build()
    assert all(tensor.is_meta for tensor in twin.parameters())
    twin.to_empty(device='cpu').load_state_dict(model.state_dict())
    assert torch.equal(twin(network.image())[0], model(network.image())[0])


@row
def meta_forward(network: Network):
    """A forward of meta or fake tensors: shapes without computing"""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device('meta'):
        assert network.build()(torch.rand(2, 3, 65, 64))[0].shape == (2, 512, 3, 2)
    with FakeTensorMode():
        assert network.build()(torch.rand(2, 3, 65, 64))[0].shape == (2, 512, 3, 2)


@row
def default_dtype(network: Network):
    """`torch.set_default_dtype(torch.float64)`"""
    torch.set_default_dtype(torch.float64)
    try:
        assert network.build()(network.image(dtype=torch.float64))[0].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@row
def parallel(network: Network):
    """`nn.DataParallel`"""
    model = network.build()
    assert torch.equal(nn.DataParallel(model)(network.image())[0], model(network.image())[0])


@row
def channels_last(network: Network):
    """`channels_last` input and parameters, with gradients"""
    gradients = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = network.build().to(memory_format=memory_format)
        x = network.image().to(memory_format=memory_format).requires_grad_()
        out = model(x)[0]
        gradients.append(torch.autograd.grad(out.square().mean(), x)[0])
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_close(*gradients, rtol=1e-3, atol=1e-6)


@row
def dtypes(network: Network):
    """`model.half()`, `.bfloat16()` and `.double()`: as float32 but for rounding"""
    model, x = network.build(), network.image()
    expected = model(x)[0]
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)):
        out = copy.deepcopy(model).to(dtype)(x.to(dtype))[0]
        assert out.dtype == dtype
        assert (out.float() - expected).norm() < tolerance * expected.norm()


@row
def autocast(network: Network):
    """`torch.autocast` in bfloat16 and float16, inference and training"""
    expected = network.build()(network.image())[0]
    for dtype in (torch.bfloat16, torch.float16):
        for training in (False, True):
            model = network.build()
            with torch.autocast('cpu', dtype), torch.set_grad_enabled(training):
                out = model(network.image())[0]
            assert (out.float() - expected).norm() < 0.1 * expected.norm()
            if training:
                out.float().square().mean().backward()
                assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@row
def grad_scaler(network: Network):
    """`torch.amp.GradScaler`: a step, once it has found its scale"""
    model = network.build(training=True)
    before = model.layer1[0].conv1.weight.clone()
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler('cpu')
    for _ in range(16):
        with torch.autocast('cpu', torch.float16):
            loss = model(network.image())[0].float().square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        if not torch.equal(before, model.layer1[0].conv1.weight):
            break
    assert scaler.get_scale() > 1 and all(parameter.isfinite().all() for parameter in model.parameters())


@row
def inference_mode(network: Network):
    """`torch.inference_mode`: as with gradients recorded"""
    model = network.build()
    with torch.inference_mode():
        out = model(network.image())[0]
    assert_close(out.clone(), model(network.image())[0].detach(), rtol=1e-4, atol=1e-5)


@row
def modes(network: Network):
    """`train()` and `eval()` in turn: statistics move in training alone"""
    model = network.build(norm_eval=False)
    statistics = [buffer for name, buffer in model.named_buffers() if 'running_mean' in name]
    for training in (True, False, True, False):
        before = [buffer.clone() for buffer in statistics]
        model.train(training)
        model(network.image())
        assert all(torch.equal(a, b) != training for a, b in zip(before, statistics, strict=True))
        assert all(module.training == training for module in model.modules())


@row
def hooks(network: Network):
    """Forward and full backward hooks on every module by name, in training"""
    model, seen = network.build(training=True), {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: seen.setdefault(name, 'forward') and None)
    model(network.image())[0].square().mean().backward()
    forward = set(seen)
    missed = [name for name, module in model.named_modules() if name not in forward and not list(module.children())]
    assert all(isinstance(model.get_submodule(name), nn.Identity) for name in missed), missed
    seen.clear()
    model = network.build(training=True)
    for name in ('layer1', 'layer2.0', 'layer2.0.conv1', 'layer2.0.conv2'):
        model.get_submodule(name).register_full_backward_hook(
            lambda *_, name=name: seen.setdefault(name, 'backward') and None
        )
    model(network.image())[0].square().mean().backward()
    assert len(seen) == 4


@row
def all_backward_hooks(network: Network):
    """A full backward hook on every module at once"""
    model = network.build(training=True)
    for module in model.modules():
        module.register_full_backward_hook(lambda *_: None)
    model(network.image())[0].square().mean().backward()


@row
def inference_hooks(network: Network):
    """A forward hook on a module, in inference: seen, and what it returns counts"""
    for name, module in network.build(**SHALLOW).named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        model = network.build(**SHALLOW)
        model.get_submodule(name).register_forward_hook(lambda module, args, out: out * 0 + 1)
        with torch.no_grad():
            assert not torch.equal(model(network.image())[0], network.build(**SHALLOW)(network.image())[0]), name


@row
def global_hooks(network: Network):
    """A hook of all modules (`register_module_forward_hook`), in inference: it sees each convolution"""
    model, seen = network.build(), set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module) and None)
    try:
        with torch.no_grad():
            model(network.image())
    finally:
        handle.remove()
    missed = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m not in seen]
    assert not missed, f'not seen: {missed[0]}'


@row
def instance_forward(network: Network):
    """A `forward` put on an instance, as offloading and patching libraries do, in inference: it is called"""
    model, seen = network.build(), set()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    for name in names:
        conv = model.get_submodule(name)

        def forward(x, conv=conv, name=name):
            seen.add(name)
            return type(conv).forward(conv, x)

        conv.forward = forward
    with torch.no_grad():
        model(network.image())
    assert seen == set(names), f'not called: {sorted(set(names) - seen)[0]}'


@row
def replaced(network: Network):
    """A convolution replaced by a module around it, as LoRA does, in inference: it is called"""

    class Around(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    for name, module in network.build(**SHALLOW).named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        model = network.build(**SHALLOW)
        model.set_submodule(name, Around(model.get_submodule(name)))
        with torch.no_grad():
            assert not torch.equal(model(network.image())[0], network.build(**SHALLOW)(network.image())[0]), name


@row
def parametrized(network: Network):
    """`parametrizations.weight_norm` and `spectral_norm` on every convolution, training and inference"""
    for parametrize in (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm):
        model = network.build(training=True)
        for module in list(model.modules()):
            if isinstance(module, nn.Conv2d):
                parametrize(module)
        model(network.image())[0].square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        model.eval()
        out = model(network.image())[0]
        with torch.no_grad():
            assert_close(model(network.image())[0], out, rtol=1e-3, atol=1e-5)


@row
def pruned(network: Network):
    """`torch.nn.utils.prune`, global, then `remove`: the zeros stay and count"""
    from torch.nn.utils import prune

    model = network.build()
    convs = [(module, 'weight') for module in model.modules() if isinstance(module, nn.Conv2d)]
    prune.global_unstructured(convs, prune.L1Unstructured, amount=0.5)
    with torch.no_grad():
        out = model(network.image())[0]
    for conv in convs:
        prune.remove(*conv)
    with torch.no_grad():
        assert_close(model(network.image())[0], out, rtol=1e-4, atol=1e-5)
    zeros = sum((conv.weight == 0).sum() for conv, _ in convs)
    assert abs(zeros / sum(conv.weight.numel() for conv, _ in convs) - 0.5) < 0.01


@row
def averaged(network: Network):
    """`torch.optim.swa_utils.AveragedModel` and `update_bn`"""
    model = network.build(training=True)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    torch.optim.swa_utils.update_bn([network.image()], averaged)
    assert averaged.module.layer1[0].bn1.num_batches_tracked == 1


@row
def sync_bn(network: Network):
    """`nn.SyncBatchNorm.convert_sync_batchnorm` and mmengine's `revert_sync_batchnorm`"""
    from mmengine.model import revert_sync_batchnorm

    model = network.build()
    expected = model(network.image())[0]
    count = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert count == sum(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    model = revert_sync_batchnorm(model)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert_close(model(network.image())[0], expected)
    model.train()
    model(network.image())


@row
def quantized_dynamic(network: Network):
    """`torch.ao.quantization.quantize_dynamic`"""
    quantized = torch.ao.quantization.quantize_dynamic(network.build())
    assert quantized(network.image())[0].isfinite().all()


@row
def quantized_fx(network: Network):
    """`torch.ao.quantization` in FX mode: prepare, calibrate, convert, run"""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    model = network.build()
    prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(), (network.image(),))
    with torch.no_grad():
        prepared(network.image())
        out, expected = convert_fx(prepared)(network.image())[0], model(network.image())[0]
    assert (out - expected).norm() < 0.5 * expected.norm()


@row
def quantized_aware(network: Network):
    """`torch.ao.quantization` in FX mode: quantization-aware training, a step"""
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    prepared = prepare_qat_fx(network.build(training=True), get_default_qat_qconfig_mapping(), (network.image(),))
    prepared(network.image())[0].square().mean().backward()
    assert all(parameter.grad is not None for parameter in prepared.parameters())


@row
def counted(network: Network):
    """`torch.utils.flop_counter.FlopCounterMode`: counts by module"""
    from torch.utils.flop_counter import FlopCounterMode

    model = network.build()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(network.image())
    name = f'{type(model).__name__}.layer4'
    assert counter.get_total_flops() > sum(counter.get_flop_counts()[name].values()) > 0


@row
def profiled(network: Network):
    """`torch.profiler` with shapes and FLOPs"""
    model = network.build()
    with torch.profiler.profile(with_flops=True, record_shapes=True) as profile:
        model(network.image())
    assert sum(event.flops for event in profile.key_averages()) > 0


@row
def optimizers(network: Network):
    """`foreach` and `fused` optimizers, `clip_grad_norm_`, `parameters_to_vector`"""
    for options in (dict(foreach=True), dict(fused=True)):
        model = network.build(training=True)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, **options)
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        for _ in range(2):
            loss = model(network.image())[0].square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0, error_if_nonfinite=True)
            optimizer.step()
        assert (nn.utils.parameters_to_vector(model.parameters()) - before).isfinite().all()
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector, model.parameters())


@row
def recomputed_by_operator(network: Network):
    """`torch.utils.checkpoint` by operator (`create_selective_checkpoint_contexts`): the same gradients"""
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    def policy(context, operator, *args, **kwargs):
        convolution = operator is torch.ops.aten.convolution.default
        return CheckpointPolicy.MUST_SAVE if convolution else CheckpointPolicy.PREFER_RECOMPUTE

    def contexts():
        return create_selective_checkpoint_contexts(policy)

    model, x = network.build(), network.image().requires_grad_()
    expected = torch.autograd.grad(model(x)[0].square().mean(), x)[0]
    out = checkpoint(model, x, use_reentrant=False, context_fn=contexts)[0]
    assert_close(torch.autograd.grad(out.square().mean(), x)[0], expected)


@row
def recomputed(network: Network):
    """`torch.utils.checkpoint` around a stage, reentrant or not: the same gradients"""
    from torch.utils.checkpoint import checkpoint

    found = []
    for options in (None, dict(use_reentrant=False), dict(use_reentrant=True)):
        model = network.build()
        if options:
            stage = model.layer2
            stage.forward = lambda x, options=options, stage=stage: checkpoint(type(stage).forward, stage, x, **options)
        model(network.image().requires_grad_())[0].square().mean().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for gradients in found[1:]:
        for a, e in zip(gradients, found[0], strict=True):
            assert_close(a, e)


@row
def pruned_away(network: Network):
    """A stage replaced by `nn.Identity`, and stages taken out as a `nn.Sequential`"""
    model = network.build()
    x = network.image(1, 32, 16, 16)
    assert nn.Sequential(model.layer1, model.layer2)(x).shape == (1, 128, 8, 8)
    model.layer4 = nn.Identity()
    assert model(network.image())[0].shape == (2, 256, 4, 4)


slow_row = rows_of('Processes', slow=True)


@slow_row
def processes(network: Network):
    """`share_memory()` and a spawned process"""
    import torch.multiprocessing as mp

    model = network.build().share_memory()
    context = mp.get_context('spawn')
    queue = context.Queue()
    process = context.Process(target=_infer, args=(model, network.image(), queue))
    process.start()
    actual = queue.get(timeout=60)
    process.join()
    assert_close(torch.tensor(actual), model(network.image())[0].mean().detach())


def _infer(model, x, queue):
    torch.set_num_threads(1)
    with torch.no_grad():
        queue.put(model(x)[0].mean().item())
