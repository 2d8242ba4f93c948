"""Features of PyTorch that meet our operator, its layer or its backbone."""

import copy
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
def per_sample(network: Network):
    """`torch.func.vmap(grad(...))`: the per-sample gradients of a loop"""
    loss, value = loss_of(network.build())
    x = network.image(3, 1, 3, 64, 64)
    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(value, x)
    assert_close(gradients, torch.stack([torch.func.grad(loss)(value, image) for image in x]), rtol=1e-4, atol=1e-6)


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
def hessian(network: Network):
    """`torch.func.hessian`: the same as `torch.autograd.functional.hessian`"""
    loss, value = exact_loss(network)
    actual = torch.func.hessian(loss)(value)
    assert actual.norm() > 0
    assert_close(actual, torch.autograd.functional.hessian(loss, value))


@row
def penalty(network: Network):
    """Gradients of gradients (`create_graph=True`), as for a gradient penalty"""
    model, x = network.build(**SHALLOW), network.image().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[0].square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.norm() > 0


row = rows_of('Tracing and compiling', tier='full')


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
    """`torch.fx.experimental.optimization.fuse`: BatchNorm layers are folded into convolutions"""
    from torch.fx.experimental.optimization import fuse

    model = network.build()
    fused = fuse(model)
    # What follows an involution cannot go into it.
    left = sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert left < sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    same(fused(network.image()), model, network.image())
    return f'{left} of {sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())} are left'


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
    """`torch.jit.trace` with its own check, saved and loaded in a new process"""
    model = network.build()
    torch.jit.trace(model, network.image()).save(network.folder / 'traced.pt')
    in_fresh_process(network, model, 'model = torch.jit.load(sys.argv[1] + "/traced.pt")')


@row
def jit_trace_training(network: Network):
    """`torch.jit.trace`: the trace has the network's gradients and accepts other sizes"""
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
    """`torch.export` with any batch size, and any height and width that are multiples of 32"""
    model = network.build(**SHALLOW)
    batch, height, width = (torch.export.Dim(name, min=1, max=32) for name in ('batch', 'height', 'width'))
    shapes = ({0: batch, 2: 32 * height, 3: 32 * width},)
    program = torch.export.export(model, (network.image(),), dynamic_shapes=shapes)
    same(program.module()(network.image(3, 3, 96, 128)), model, network.image(3, 3, 96, 128))


@row
def export(network: Network):
    """`torch.export` with any batch size, saved and loaded in a new process"""
    model = network.build(**SHALLOW)
    dynamic = ({0: torch.export.Dim('batch', min=1, max=64)},)
    program = torch.export.export(model, (network.image(),), dynamic_shapes=dynamic)
    torch.export.save(program, network.folder / 'exported.pt2')
    same(program.module()(network.image(5, 3, 64, 64)), model, network.image(5, 3, 64, 64))
    in_fresh_process(network, model, 'model = torch.export.load(sys.argv[1] + "/exported.pt2").module()')


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
def compile_aot(network: Network):
    """`torch.compile(..., backend='aot_eager')`, inference"""
    return compiled(network, False, 'aot_eager', **SHALLOW)


@row
def compile_aot_training(network: Network):
    """`torch.compile(..., backend='aot_eager')`, training: the same gradients"""
    return compiled(network, True, 'aot_eager', **SHALLOW)


@row
def compile_in_place(network: Network):
    """`model.compile()` with odd and even sizes in turn"""
    torch._dynamo.reset()
    model = network.build(**SHALLOW)
    expected = copy.deepcopy(model)
    model.compile(backend='eager')
    for size in ((64, 64), (65, 64), (33, 95)):
        with torch.no_grad():
            same(model(network.image(1, 3, *size)), expected, network.image(1, 3, *size))
    torch._dynamo.reset()


slow_row = rows_of('Compiling with inductor', tier='slow')


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
    """`torch._inductor.aoti_compile_and_package`, loaded in a new process"""
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
def meta_forward(network: Network):
    """A forward pass with meta or fake tensors: shapes without computation"""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device('meta'):
        assert network.build()(torch.rand(2, 3, 65, 64))[0].shape == (2, 512, 3, 2)
    with FakeTensorMode():
        assert network.build()(torch.rand(2, 3, 65, 64))[0].shape == (2, 512, 3, 2)


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
    """`model.half()`, `.bfloat16()` and `.double()`: the results of float32 except for rounding"""
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
def inference_mode(network: Network):
    """`torch.inference_mode`: the same results as with recorded gradients"""
    model = network.build()
    with torch.inference_mode():
        out = model(network.image())[0]
    assert_close(out.clone(), model(network.image())[0].detach(), rtol=1e-4, atol=1e-5)


@row
def modes(network: Network):
    """`train()` and `eval()` in turn: statistics change only in training"""
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
def inference_hooks(network: Network):
    """A forward hook on a module, in inference: it is called, and its return value is used"""
    for name, module in network.build(**SHALLOW).named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        model = network.build(**SHALLOW)
        model.get_submodule(name).register_forward_hook(lambda module, args, out: out * 0 + 1)
        with torch.no_grad():
            assert not torch.equal(model(network.image())[0], network.build(**SHALLOW)(network.image())[0]), name


@row
def global_hooks(network: Network):
    """A hook on all modules (`register_module_forward_hook`), in inference: it is called for each convolution; RedNet
    with `fused=False`"""
    model, seen = network.build(**dict(fused=False) if network.name.startswith('RedNet') else {}), set()
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
    """A `forward` assigned to an instance, as by offloading libraries, in inference: it is called"""
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
    """A convolution wrapped in another module, as by LoRA, in inference: the wrapper is called"""

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
def counted(network: Network):
    """`torch.utils.flop_counter.FlopCounterMode`: counts by module"""
    from torch.utils.flop_counter import FlopCounterMode

    model = network.build()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(network.image())
    name = f'{type(model).__name__}.layer4'
    assert counter.get_total_flops() > sum(counter.get_flop_counts()[name].values()) > 0


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
