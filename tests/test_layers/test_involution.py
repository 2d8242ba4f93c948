from collections import OrderedDict

import pytest
import torch
from helpers import ConstantKernel
from torch import nn
from torch.nn.utils import parametrize, prune

from mmrednet.layers import Involution, LinearKernelGeneration, involution


@pytest.mark.parametrize('size', ((14, 14), (15, 13), (1, 1), (2, 3), (8, 7)))
@pytest.mark.parametrize('stride', (1, 2, 3))
def test_output_size_is_that_of_a_convolution(size, stride):
    output = Involution(16, 7, stride).eval()(torch.rand(2, 16, *size))
    assert output.shape == nn.Conv2d(16, 16, 7, stride, 3)(torch.rand(2, 16, *size)).shape


@pytest.mark.parametrize('size', ((12, 12), (8, 20)))
@pytest.mark.parametrize(('stride', 'kernel_size', 'group_channels'), ((1, 7, 16), (2, 7, 16), (2, 3, 4), (1, 5, 32)))
def test_agrees_with_the_released_layer_where_that_runs(size, stride, kernel_size, group_channels):
    """Average pooling, W0, BN, ReLU, W1, unfold, multiply, sum: Algorithm 1 on sizes that the stride divides."""
    layer = Involution(32, kernel_size, stride, group_channels=group_channels).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 32, *size, dtype=torch.float64)
    weight = layer.conv2(layer.conv1(nn.AvgPool2d(stride, stride)(x) if stride > 1 else x))
    n, _, h, w = weight.shape
    groups = 32 // group_channels
    weight = weight.view(n, groups, kernel_size**2, h, w).unsqueeze(2)
    windows = nn.Unfold(kernel_size, 1, (kernel_size - 1) // 2, stride)(x)
    expected = (weight * windows.view(n, groups, group_channels, kernel_size**2, h, w)).sum(3).view(n, 32, h, w)
    torch.testing.assert_close(layer(x), expected)


def test_cells_cut_off_by_the_border_average_the_pixels_that_they_have():
    layer = Involution(16, 3, 2).eval().double()
    x = torch.rand(1, 16, 5, 4, dtype=torch.float64)
    pooled = torch.stack([x[:, :, i : i + 2].mean(2) for i in (0, 2, 4)], 2)
    pooled = torch.stack([pooled[:, :, :, j : j + 2].mean(3) for j in (0, 2)], 3)
    expected = layer.conv2(layer.conv1(pooled)).view(1, 1, 3, 3, 3, 2)
    torch.testing.assert_close(layer.generate_kernel(x), expected)


@pytest.mark.parametrize(
    ('kernel_size', 'padding', 'stride'), ((3, 0, 1), (7, 1, 2), (4, 1, 2), (2, 0, 2), ((3, 5), (0, 1), 1))
)
def test_less_padding_takes_kernels_from_the_middle_of_the_windows(kernel_size, padding, stride):
    x = torch.rand(2, 16, 13, 16)
    layer = Involution(16, kernel_size, stride, padding=padding).eval()
    assert layer(x).shape == nn.Conv2d(16, 16, kernel_size, stride, padding)(x).shape
    if kernel_size == 3:
        same = Involution(16, 3).eval()
        same.load_state_dict(layer.state_dict())
        torch.testing.assert_close(layer(x), same(x)[:, :, 1:-1, 1:-1])


@pytest.mark.parametrize('stride', (1, 2))
def test_empty_batch(stride):
    layer = Involution(16, stride=stride)
    x = torch.rand(0, 16, 8, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape
    assert all(parameter.grad is not None for parameter in layer.parameters())
    assert all(buffer.isfinite().all() for buffer in layer.buffers())


class SoftmaxKernel(nn.Sequential):
    """A sequence with a forward, a parameter and a buffer of its own: kernels sum to one."""

    def __init__(self, channels, groups, kernel_size, stride, padding, dilation):
        super().__init__(nn.Conv2d(channels, groups * kernel_size[0] * kernel_size[1], 1))
        self.groups = groups
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.register_buffer('count', torch.zeros(()))

    def forward(self, x):
        self.count += 1
        logits = super().forward(x) / self.temperature
        return logits.unflatten(1, (self.groups, -1)).softmax(2).flatten(1, 2)


def test_a_kernel_generation_function_keeps_its_forward_parameters_and_buffers():
    layer = Involution(32, 3, kernel_generation=SoftmaxKernel)
    kernel = layer.generate_kernel(torch.randn(2, 32, 5, 4))
    torch.testing.assert_close(kernel.sum((2, 3)), torch.ones(2, 2, 5, 4))
    assert 'kernel_generation.temperature' in dict(layer.named_parameters())
    layer(torch.randn(2, 32, 5, 4)).sum().backward()
    assert layer.kernel_generation.temperature.grad is not None
    assert layer.kernel_generation.count == 2


class TanhKernel(nn.Sequential):
    """A sequence with a method of its own, and one module in two places."""

    def __init__(self, channels, groups, kernel_size, stride, padding, dilation):
        tanh = nn.Tanh()
        super().__init__(
            nn.Conv2d(channels, 8, 1), tanh, nn.Conv2d(8, groups * kernel_size[0] * kernel_size[1], 1), tanh
        )

    def train(self, mode=True):
        return super().train(False)


@pytest.mark.parametrize('name', ('0', 'projection', 'output', 'fused', 'groups', None))
def test_a_sequence_is_applied_whole_whatever_its_stages_are_called(name):
    phi, x = TanhKernel(16, 1, (3, 3), 1, 1, 1), torch.randn(1, 8, 5, 6) * 9
    if name:
        first, tanh, second, _ = phi
        phi = nn.Sequential(OrderedDict({'first': first, 'tanh': tanh, 'second': second, name: tanh}))
    layer = Involution(16, 3, in_channels=8, kernel_generation=lambda **_: phi)
    features = layer.projection(x)
    kernel = layer.generate_kernel(features)
    assert torch.equal(kernel.flatten(1, 3), phi(features))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), involution.involution2d(features, kernel))
    assert layer.train() and phi.training == (name is not None)


class SelfAttention(nn.Module):
    """Stand-alone self-attention's weights: a pixel's query against the keys of its window (zeros outside)."""

    needs_all_pixels = True

    def __init__(self, channels, groups, kernel_size, stride, padding, dilation):
        super().__init__()
        self.groups, self.window = groups, (kernel_size, dilation, padding, stride)
        self.query, self.key = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        keys = nn.functional.unfold(self.key(x), *self.window).unflatten(1, (self.groups, -1, self.taps))
        query = self.query(x)[:, :, :: self.window[3][0], :: self.window[3][1]]
        query = query.unflatten(1, (self.groups, -1)).flatten(3).unsqueeze(3)
        return (query * keys).sum(2).softmax(2).flatten(1, 2).unflatten(2, tuple(self.size(x)))

    @property
    def taps(self):
        return self.window[0][0] * self.window[0][1]

    def size(self, x):
        return (-(-x.shape[2] // self.window[3][0]), -(-x.shape[3] // self.window[3][1]))


@pytest.mark.parametrize('stride', (1, 2))
def test_self_attention_is_a_kernel_generation_function(stride):
    """Against the loop over pixels and taps that self-attention is."""
    layer = Involution(8, 3, stride, group_channels=4, kernel_generation=SelfAttention).double()
    x = torch.randn(1, 8, 5, 6, dtype=torch.float64)
    out = layer(x)
    phi = layer.kernel_generation
    query, key = phi.query(x)[0], nn.functional.pad(phi.key(x), (1, 1, 1, 1))[0]
    value = nn.functional.pad(x, (1, 1, 1, 1))[0]
    for g in range(2):
        c = slice(4 * g, 4 * g + 4)
        for i in range(out.shape[2]):
            for j in range(out.shape[3]):
                a, b = i * stride, j * stride
                logits = (query[c, a, b, None, None] * key[c, a : a + 3, b : b + 3]).sum(0)
                weights = logits.flatten().softmax(0).view(3, 3)
                torch.testing.assert_close(out[0, c, i, j], (weights * value[c, a : a + 3, b : b + 3]).sum((1, 2)))


def test_trains_on_a_single_value_a_channel():
    """BatchNorm has no variance there, and takes the statistics that it has, as it does in inference."""
    layer = Involution(32).double()
    layer.conv1.bn.running_mean.uniform_(-1, 1)
    x = torch.randn(1, 32, 1, 1, dtype=torch.float64)
    out = layer.train()(x)
    torch.testing.assert_close(out, layer.eval()(x))
    out.sum().backward()
    assert layer.conv1.conv.weight.grad is not None


def test_torch_fx_traces_the_layer():
    layer = Involution(32, stride=2).eval()
    traced = torch.fx.symbolic_trace(layer)
    for size in ((9, 12), (8, 7)):
        x = torch.rand(2, 32, *size)
        torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(channels=24), ('group_channels', '16', '24', 'divisor')),
        (dict(channels=16, group_channels=0), ('group_channels', '0')),
        (dict(channels=16, kernel_size=4), ('4x4', 'padding', 'odd')),
        (dict(channels=16, kernel_size=0), ('kernel_size', '0')),
        (dict(channels=16, stride=0), ('stride', '0')),
        (dict(channels=16, padding=4), ('padding', '(4, 4)', 'kernel_size')),
        (dict(channels=16, reduction_ratio=17), ('reduction_ratio', '17', '16')),
    ],
)
def test_errors_name_argument_and_remedy(arguments, words):
    with pytest.raises(ValueError) as info:
        Involution(**arguments)
    for word in words:
        assert word in str(info.value)


@pytest.fixture
def calls(monkeypatch):
    """The names of the operators that layers call."""
    names = []
    for name in ('involution2d', 'fused_involution2d'):
        operator = getattr(involution, name)
        monkeypatch.setattr(
            involution,
            name,
            lambda *args, name=name, operator=operator, **kwargs: names.append(name) or operator(*args, **kwargs),
        )
    return names


@pytest.mark.parametrize(
    'arguments',
    (
        dict(),
        dict(stride=2),
        dict(kernel_size=3, padding=0),
        dict(kernel_generation=LinearKernelGeneration),
    ),
    ids=str,
)
def test_fused_gives_the_same_results_and_gradients(calls, arguments):
    layers = [Involution(32, fused=fused, **arguments).double() for fused in (False, True, None)]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    x = torch.randn(2, 32, 9, 12, dtype=torch.float64)
    outputs, grads = [], []
    for layer in layers:
        outputs.append(layer(x))
        grads.append(torch.autograd.grad(outputs[-1].square().sum(), layer.parameters()))
    with torch.no_grad():
        outputs.append(layers[2](x))
    assert calls == ['involution2d', 'fused_involution2d', 'involution2d', 'fused_involution2d']
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize('kind', ('forward_pre_hook', 'forward_hook', 'full_backward_pre_hook', 'full_backward_hook'))
def test_not_fused_where_the_last_convolution_has_a_hook(kind, calls):
    layer, x, called = Involution(16), torch.rand(1, 16, 5, 6), []
    for module in (layer.conv2, layer.conv2.conv):
        handle = getattr(module, f'register_{kind}')(lambda module, *args: called.append((module, args)))
        with torch.no_grad():
            layer(x)
        handle.remove()
    if 'forward' in kind:
        assert [module for module, _ in called] == [layer.conv2, layer.conv2.conv]
    if kind == 'forward_hook':
        assert called[0][1][-1].shape == (1, 49, 5, 6)
    with torch.no_grad():
        layer(x)
    assert calls == ['involution2d', 'involution2d', 'fused_involution2d']


def test_fused_false_calls_every_module_for_hooks_on_all_modules():
    layer, called = Involution(16, fused=False), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(module))
    with torch.no_grad():
        layer(torch.rand(1, 16, 5, 6))
    handle.remove()
    assert layer.conv2.conv in called and layer.conv2 in called


def test_observers_of_quantization_record_the_generated_kernel():
    layer = Involution(16).eval()
    layer.qconfig = torch.ao.quantization.default_qconfig
    prepared = torch.ao.quantization.prepare(layer)
    with torch.no_grad():
        prepared(torch.rand(1, 16, 5, 6))
    observer = prepared.conv2.conv.activation_post_process
    assert observer.min_val.isfinite() and observer.min_val < observer.max_val


def test_not_fused_where_a_forward_was_patched(calls):
    layer, x = Involution(16), torch.ones(1, 16, 5, 6)
    with torch.no_grad():
        expected = layer(x)
        layer.conv2.conv.forward = lambda x: 2 * nn.Conv2d.forward(layer.conv2.conv, x)
        torch.testing.assert_close(layer(x), 2 * expected)
    assert calls == ['fused_involution2d', 'involution2d']


@pytest.mark.parametrize(
    ('stages', 'fuses'),
    (
        ([nn.ZeroPad2d(1), nn.Conv2d(16, 9, 3)], False),
        ([nn.Conv2d(16, 16, 3), nn.Conv2d(16, 9, 1, padding=1)], False),
        ([nn.Conv2d(16, 18, 1, groups=2), nn.Conv2d(18, 9, 1, groups=9)], False),
        ([nn.AvgPool2d(2), nn.UpsamplingNearest2d(scale_factor=2), nn.Conv2d(16, 9, 1)], True),
    ),
    ids=('3x3', 'padding', 'groups', '1x1'),
)
def test_fused_only_where_a_sequence_ends_in_a_1x1_convolution(stages, fuses, calls):
    layer, x = Involution(16, 3, kernel_generation=lambda **_: nn.Sequential(*stages)), torch.randn(1, 16, 6, 8)
    expected = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    assert calls == ['involution2d', 'fused_involution2d' if fuses else 'involution2d']


@pytest.mark.parametrize(
    ('stages', 'fuses'), (([nn.Conv2d(16, 9, 1, stride=2)], False), ([nn.AvgPool2d(2), nn.Conv2d(16, 9, 1)], True))
)
def test_a_sequence_whose_input_is_all_pixels(stages, fuses, calls):
    phi, x = nn.Sequential(*stages), torch.randn(1, 16, 6, 8)
    phi.needs_all_pixels = True
    layer = Involution(16, 3, 2, kernel_generation=lambda **_: phi)
    expected = layer(x)
    torch.testing.assert_close(
        expected, involution.involution2d(x, phi(x).unflatten(1, (1, 3, 3)), stride=2, backend='reference')
    )
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    assert calls[-1] == ('fused_involution2d' if fuses else 'involution2d')


def test_fused_where_a_device_is_the_default(calls):
    x = torch.rand(1, 16, 5, 6)
    with torch.device('cpu'), torch.no_grad():
        Involution(16, fused=True)(x)
        torch._dynamo.reset()
        torch.compile(Involution(16).eval(), backend='eager', fullgraph=True)(x)
    assert calls == ['fused_involution2d', 'fused_involution2d']


class HalvedConv(nn.Conv2d):
    """A convolution that adds something to another's result, as LoRA's do."""

    def __init__(self, conv):
        super().__init__(conv.in_channels, conv.out_channels, 1)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x):
        y = super().forward(x)
        return y - y / 2


class HalvedWeight(nn.Module):
    def forward(self, weight):
        return weight / 2


class Halved(nn.Parameter):
    """A weight with a ``__torch_function__`` of its own, as quantised weights have."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs or {})
        return result / 2 if function is nn.functional.conv2d else result


@pytest.mark.parametrize(
    'change',
    (
        lambda conv2: conv2.activate.register_forward_hook(lambda module, args, output: output / 2),
        lambda conv2: setattr(conv2, 'activate', type('Half', (nn.Identity,), {'forward': lambda self, x: x / 2})()),
        lambda conv2: setattr(
            conv2.conv, '_conv_forward', lambda x, *_: nn.functional.conv2d(x, conv2.conv.weight) / 2
        ),
        lambda conv2: setattr(conv2.conv, 'weight', Halved(conv2.conv.weight.detach())),
        lambda conv2: setattr(conv2, 'conv', HalvedConv(conv2.conv)),
        lambda conv2: parametrize.register_parametrization(conv2.conv, 'weight', HalvedWeight()),
        lambda conv2: prune.custom_from_mask(conv2.conv, 'weight', torch.full_like(conv2.conv.weight, 0.5)),
    ),
    ids=('hook', 'own forward', 'patched', 'weight', 'LoRA', 'parametrization', 'pruning'),
)
def test_changes_of_the_last_convolution_hold_without_gradients_too(change):
    layer, x = Involution(16).eval(), torch.randn(1, 16, 5, 6)
    expected = layer(x) / 2
    change(layer.conv2)
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


def test_mmcv_fuses_no_norm_layer_of_phi_with_the_projection():
    fuse_conv_bn = pytest.importorskip('mmcv.cnn').fuse_conv_bn

    def kernel_generation(channels, groups, kernel_size, **_):
        return nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, groups * kernel_size[0] * kernel_size[1], 1))

    layer, x = Involution(16, 3, in_channels=8, kernel_generation=kernel_generation), torch.randn(4, 8, 5, 6) + 1
    layer(x)
    expected = layer.eval()(x)
    torch.testing.assert_close(fuse_conv_bn(layer)(x), expected)


def test_in_place_of_conv_refuses_a_window_for_which_there_is_no_padding():
    with pytest.raises(ValueError, match=r'involution_kernel_size must .* \(1, 1\) cannot .* with padding \(0, 0\)'):
        involution.in_place_of_conv(16, 16, 3, involution_kernel_size=1)


@pytest.mark.parametrize('padding', ('same', 'valid'))
def test_in_place_of_conv_takes_the_words_for_padding(padding):
    x = torch.rand(1, 16, 9, 11)
    layer = involution.in_place_of_conv(16, 16, (3, 5), 1, padding, 2)
    assert layer(x).shape == nn.Conv2d(16, 16, (3, 5), 1, padding, 2)(x).shape
    with pytest.raises(ValueError, match="padding must be .* 'full'"):
        involution.in_place_of_conv(16, 16, 3, padding='full')


def test_in_place_of_conv_names_unknown_arguments():
    for kernel_size in (1, 3):
        with pytest.raises(TypeError, match='no argument padding_mode'):
            involution.in_place_of_conv(16, 16, kernel_size, padding_mode='reflect', group_channels=8)


def test_cannot_be_fused():
    with pytest.raises(ValueError, match='fused.*1x1 convolution.*ConstantKernel'):
        Involution(16, fused=True, kernel_generation=ConstantKernel)


def test_error_of_a_kernel_generation_function_with_the_wrong_shape():
    class Wrong(ConstantKernel):
        def forward(self, x):
            return super().forward(x)[:, 1:]

    with pytest.raises(ValueError, match=r'kernel_generation.*\(1, 9, 4, 4\).*\(1, 8, 4, 4\)'):
        Involution(16, 3, kernel_generation=Wrong)(torch.rand(1, 16, 4, 4))
