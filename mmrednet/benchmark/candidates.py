"""What is measured: the operator and what it is compared with, and whole networks (Table 2).

All but the networks needs torch alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import ceil, prod
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Involution
from ..ops import BACKENDS, fused_involution2d, involution2d
from ..ops.arguments import output_size, same_padding
from ..ops.backends import reference
from ..ops.backends.pytorch import generate_kernel
from . import naive_cuda
from .timing import Step

MODELS = ('ResNet-50', 'ResNet-101', 'RedNet-26', 'RedNet-38', 'RedNet-50', 'RedNet-101')
PHASES = ('inference', 'inference, BN folded', 'training')
# What runs a network on the CPU, and the format of `mmrednet.export` that takes it there.
RUNTIMES = {
    'PyTorch': None,
    'PyTorch, channels-last': None,
    'torch.compile': None,
    'ONNX Runtime': 'onnx',
    'ONNX Runtime, our operator': 'onnxruntime',
    'OpenVINO': 'openvino',
}


@dataclass(frozen=True)
class Case:
    """One involution, without its batch size; the padding is 'same'.

    Args:
        channels (int): Channels C.
        size (tuple[int, int]): Height and width of the input.
        kernel_size (tuple[int, int]): Height and width K of the window. Defaults to (7, 7).
        stride (tuple[int, int]): Vertical and horizontal stride. Defaults to (1, 1).
        groups (int): Groups G. Defaults to 1.
        dilation (tuple[int, int]): Vertical and horizontal dilation. Defaults to (1, 1).
    """

    channels: int
    size: tuple[int, int]
    kernel_size: tuple[int, int] = (7, 7)
    stride: tuple[int, int] = (1, 1)
    groups: int = 1
    dilation: tuple[int, int] = (1, 1)

    @property
    def padding(self) -> tuple[int, int]:
        """The padding that 'same' stands for."""
        return same_padding(self.kernel_size, self.dilation)

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        return output_size(self.size, self.kernel_size, self.stride, self.padding, self.dilation)

    def __str__(self) -> str:
        text = f'{self.channels}x{self.size[0]}x{self.size[1]}, K = {_short(self.kernel_size)}'
        for name in ('stride', 'dilation'):
            if (pair := getattr(self, name)) != (1, 1):
                text += f', {name} {_short(pair)}'
        return text


def _short(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f'{pair[0]}x{pair[1]}'


def rednet_cases(depth: int = 50, size: tuple[int, int] = (224, 224)) -> list[Case]:
    """Returns the involutions of a RedNet, from the stem on, each once.

    Args:
        depth (int): The RedNet's depth. Defaults to 50.
        size (tuple[int, int]): Height and width of the image. Defaults to (224, 224).
    """
    from ..models.rednet import RedNet

    cases: dict[Case, None] = {}

    def see(layer: Involution, args: tuple[Tensor], out: Tensor) -> None:
        height, width = args[0].shape[2:]
        cases[layer_case(layer, (height, width))] = None

    with torch.device('meta'), torch.no_grad():
        model = RedNet(depth).eval()
        for layer in model.modules():
            if isinstance(layer, Involution):
                layer.register_forward_hook(see)
        model(torch.empty(1, 3, *size))
    return list(cases)


def layer_case(layer: Involution, size: tuple[int, int]) -> Case:
    """Returns the involution of a layer whose input has a height and a width."""
    return Case(layer.out_channels, size, layer.kernel_size, layer.stride, layer.groups, layer.dilation)


def stage_cases() -> list[Case]:
    """Returns the involution of each of RedNet-50's four stages at 224x224, without stride."""
    return [Case(64 << i, (56 >> i, 56 >> i), groups=4 << i) for i in range(4)]


def fpn_case(size: tuple[int, int]) -> Case:
    """Returns the involution of FPN's finest level, P2, which has a quarter of the image's height and width."""
    return Case(256, (size[0] // 4, size[1] // 4), groups=16)


def working_backends(device: str | torch.device) -> list[str]:
    """Returns the operator's backends that work on a device."""
    working = []
    for backend in BACKENDS:
        try:
            involution2d(torch.ones(1, 1, 1, 1, device=device), torch.ones((1,) * 6, device=device), backend=backend)
        except (RuntimeError, ValueError):  # its compiler is missing, or it is for another device
            continue
        working.append(backend)
    return working


@dataclass(frozen=True)
class _Problem:
    """A case with its tensors' batch size, type, place and layout, and what is computed of it."""

    case: Case
    batch: int
    dtype: torch.dtype
    device: str | torch.device
    channels_last: bool
    phase: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.case.channels, *self.case.size)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The shape that a 1x1 convolution gives to kernels."""
        return (self.batch, self.case.groups * prod(self.case.kernel_size), *self.case.output_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, self.case.channels, *self.case.output_size)

    @property
    def moved(self) -> int:
        """The values that have to be read and written: see :func:`operator_step`."""
        passes = 1 if self.phase == 'forward' else 2
        return passes * (prod(self.input_shape) + prod(self.kernel_shape)) + prod(self.output_shape)

    def randn(self, *shape: int) -> Tensor:
        memory_format = torch.channels_last if self.channels_last and len(shape) == 4 else torch.contiguous_format
        return torch.randn(shape, device=self.device).to(dtype=self.dtype, memory_format=memory_format)

    def kernel(self) -> Tensor:
        return self.randn(*self.kernel_shape).unflatten(1, (self.case.groups, *self.case.kernel_size))

    def step(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Step:
        """Returns a function that runs the phase of a function that autograd knows."""
        if self.phase == 'forward':
            return torch.no_grad()(partial(function, *inputs))
        for tensor in inputs:
            tensor.requires_grad_()
        grad = self.randn(*self.output_shape)
        if self.phase == 'training':
            return lambda: torch.autograd.grad(function(*inputs), inputs, grad)
        return partial(torch.autograd.grad, function(*inputs), inputs, grad, retain_graph=True)


def _floor(problem: _Problem) -> Step:
    source = torch.ones(ceil(problem.moved / 2), dtype=problem.dtype, device=problem.device)
    return partial(torch.empty_like(source).copy_, source)


def _depthwise(problem: _Problem) -> Step:
    case = problem.case
    weight = problem.randn(case.channels, 1, *case.kernel_size)
    geometry = dict(stride=case.stride, padding=case.padding, dilation=case.dilation)
    convolve = partial(F.conv2d, **geometry, groups=case.channels)
    return problem.step(convolve, (problem.randn(*problem.input_shape), weight))


def _naive(problem: _Problem) -> Step:
    geometry = problem.case.stride, problem.case.padding, problem.case.dilation
    kernel, input, output = problem.kernel(), problem.randn(*problem.input_shape), problem.randn(*problem.output_shape)
    grad_input, grad_kernel = torch.empty_like(input), torch.empty_like(kernel)

    def step() -> None:
        if problem.phase != 'backward':
            naive_cuda.involution2d(output, input, kernel, *geometry)
        if problem.phase != 'forward':
            naive_cuda.grad_input(grad_input, output, kernel, *geometry)
            naive_cuda.grad_kernel(grad_kernel, output, input, *geometry)

    return step


def _backend(problem: _Problem, name: str) -> Step:
    involve = partial(involution2d, stride=problem.case.stride, dilation=problem.case.dilation, backend=name)
    return problem.step(involve, (problem.randn(*problem.input_shape), problem.kernel()))


def _generating(problem: _Problem, function: Callable[..., Tensor]) -> Step:
    case, channels = problem.case, problem.kernel_shape[1]
    features = problem.randn(problem.batch, max(case.channels // 4, 1), *case.output_size)
    weight, bias = problem.randn(channels, features.shape[1], 1, 1), problem.randn(channels)
    involve = partial(function, kernel_size=case.kernel_size, stride=case.stride, dilation=case.dilation)
    return problem.step(involve, (problem.randn(*problem.input_shape), features, weight, bias))


def _apart(input, features, weight, bias, kernel_size, stride, dilation) -> Tensor:
    """Does what ``fused_involution2d`` does, one after the other."""
    return involution2d(input, generate_kernel(features, weight, bias, kernel_size), stride, dilation=dilation)


def _compiled(problem: _Problem, form: Callable[..., Tensor]) -> Step:
    case = problem.case
    # fullgraph: it rather fails than runs uncompiled, where dynamo has compiled the form for too many shapes.
    compiled = torch.compile(form, fullgraph=True, dynamic=False)
    involve = partial(compiled, stride=case.stride, padding=case.padding, dilation=case.dilation)
    return problem.step(involve, (problem.randn(*problem.input_shape), problem.kernel()))


def sum_of_taps(
    input: Tensor, kernel: Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """Eq. 4 with its sum written out, which a compiler can make one loop of; see :func:`.reference.involution2d`."""
    groups, *size = kernel.shape[1:4]
    rows, columns = kernel.shape[4:]
    (pad_y, pad_x), accumulate = padding, torch.promote_types(input.dtype, torch.float32)
    padded = F.pad(input, (pad_x, pad_x, pad_y, pad_y)).unflatten(1, (groups, -1)).to(accumulate)
    taps = (
        kernel[:, :, None, u, v]
        * padded[
            ...,
            u * dilation[0] : u * dilation[0] + (rows - 1) * stride[0] + 1 : stride[0],
            v * dilation[1] : v * dilation[1] + (columns - 1) * stride[1] + 1 : stride[1],
        ]
        for u in range(size[0])
        for v in range(size[1])
    )
    return sum(taps, start=torch.zeros((), dtype=accumulate, device=input.device)).flatten(1, 2).to(input.dtype)


CANDIDATES: dict[str, Callable[[_Problem], Step]] = {
    'floor': _floor,
    'depthwise': _depthwise,
    'naive': _naive,
    **{name: partial(_backend, name=name) for name in BACKENDS},
    'apart': partial(_generating, function=_apart),
    'fused': partial(_generating, function=fused_involution2d),
    'compiled unfold': partial(_compiled, form=reference.involution2d),
    'compiled taps': partial(_compiled, form=sum_of_taps),
}


def bytes_moved(case: Case, batch: int, dtype: torch.dtype, phase: str) -> int:
    """Returns the bytes that the candidate 'floor' of :func:`operator_step` reads and writes."""
    return _Problem(case, batch, dtype, 'cpu', False, phase).moved * dtype.itemsize


def operator_step(
    candidate: str,
    case: Case,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = 'cpu',
    channels_last: bool = False,
    phase: str = 'forward',
) -> Step:
    """Returns a function that runs a candidate once, on random tensors.

    The candidate 'floor' moves as many bytes as the operator has to: forward input, kernel and output once; backward
    input, kernel and the gradients of all three. It copies a tensor of half as many, since a byte copied is one read
    and one write; so its time is those bytes over the bandwidth of a copy.

    Args:
        candidate (str): One of ``CANDIDATES``: a backend of the operator, 'depthwise' for the depthwise convolution
            with the same window and shapes, 'floor', 'naive' for the straightforward CUDA kernels on contiguous
            tensors, or with the generation of the kernels from C / 4 channels 'apart' (a 1x1 convolution, then the
            fastest backend) or 'fused'; 'compiled unfold' and 'compiled taps' for what ``torch.compile`` makes of the
            plain formula, as 'reference' writes it and as a sum over the taps.
        case (Case): The involution.
        batch (int): Batch size. Defaults to 1.
        dtype (torch.dtype): Type of all tensors. Defaults to float32.
        device (str or torch.device): Where they lie. Defaults to 'cpu'.
        channels_last (bool): Whether they are channels-last. Defaults to False.
        phase (str): 'forward'; 'backward', both gradients, from a forward pass that went before; or 'training', a
            forward pass and both gradients. Defaults to 'forward'.

    Raises:
        ValueError: There is no such candidate.
    """
    if candidate not in CANDIDATES:
        raise ValueError(f'candidate must be one of {tuple(CANDIDATES)}, but is {candidate!r}')
    return CANDIDATES[candidate](_Problem(case, batch, dtype, device, channels_last, phase))


def initialise(model: nn.Module, device: str | torch.device) -> nn.Module:
    """Moves a model from the meta device, with random weights as torch's modules choose them, and returns it."""
    model = model.to_empty(device=device)
    for module in model.modules():
        if callable(reset := getattr(module, 'reset_parameters', None)):
            reset()
    return model


def classifier(name: str, device: str | torch.device = 'cpu') -> nn.Module:
    """Returns a classifier of Table 1 with random weights.

    Args:
        name (str): 'RedNet-50' or another model of Table 1, where wanted with a backend, 'RedNet-50/reference', or with
            kernels that are generated anew in the backward pass, 'RedNet-50/fused'.
        device (str or torch.device): Where it lies. Defaults to 'cpu'.

    Raises:
        ValueError: There is no such model.
    """
    from ..complexity.tables import ROWS, build_model, load_config

    name, _, variant = name.partition('/')
    rows = {row.model: row for row in ROWS if row.table == '1'}
    if name not in rows:
        raise ValueError(f'model must be one of {tuple(rows)}, but is {name!r}')
    row = rows[name]
    if variant:
        option = {'model.backbone.fused': True} if variant == 'fused' else {'model.backbone.backend': variant}
        row = replace(row, options={**row.options, **option})
    return initialise(build_model(load_config(row)), device)


def network_step(
    name: str,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = 'cpu',
    channels_last: bool = False,
    phase: str = 'inference',
    size: tuple[int, int] = (224, 224),
    compiled: bool = False,
) -> Step:
    """Returns a function that runs a classifier of Table 1 once, on random images.

    Args:
        name (str): As in :func:`classifier`.
        batch (int): Batch size. Defaults to 1.
        dtype (torch.dtype): Type of autocast; float32 is without autocast. Defaults to float32.
        device (str or torch.device): Where the model lies. Defaults to 'cpu'.
        channels_last (bool): Whether weights and images are channels-last. Defaults to False.
        phase (str): One of ``PHASES``: 'inference', with BatchNorm as it is, or after mmcv's ``fuse_conv_bn``,
            or 'training', a forward and a backward pass. Defaults to 'inference'.
        size (tuple[int, int]): Height and width of the images. Defaults to (224, 224).
        compiled (bool): Whether ``torch.compile`` compiles the model. Defaults to False.

    Raises:
        ValueError: There is no such model or phase.
    """
    from mmcv.cnn import fuse_conv_bn

    if phase not in PHASES:
        raise ValueError(f'phase must be one of {PHASES}, but is {phase!r}')
    device = torch.device(device)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = classifier(name, device).to(memory_format=memory_format)  # type: ignore[call-overload]
    images = torch.randn(batch, 3, *size, device=device).to(memory_format=memory_format)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    if phase != 'training':
        if phase == 'inference, BN folded':
            model = fuse_conv_bn(model)
        call = torch.compile(model) if compiled else model

        @torch.no_grad()
        def infer() -> None:
            with autocast:
                call(images, mode='tensor')

        return infer

    model.train()
    call = torch.compile(model) if compiled else model
    labels = torch.zeros(batch, dtype=torch.long, device=device)

    def train() -> None:
        model.zero_grad()
        with autocast:
            loss = F.cross_entropy(call(images, mode='tensor'), labels)
        loss.backward()

    return train


def runtime_step(name: str, runtime: str, batch: int = 1, size: tuple[int, int] = (224, 224)) -> Step:
    """Returns a function that runs a classifier of Table 1 once in a runtime: on the CPU, in float32, on random images.

    Each runtime is at its best: PyTorch with BatchNorm folded, ``torch.compile`` with the weights frozen, and of a file
    that takes any size the runtime is told the images'.

    Args:
        name (str): As in :func:`classifier`.
        runtime (str): One of ``RUNTIMES``.
        batch (int): Batch size. Defaults to 1.
        size (tuple[int, int]): Height and width of the images. Defaults to (224, 224).

    Raises:
        ValueError: There is no such model or runtime.
    """
    from ..export import FORMATS, ExportableModel

    if runtime not in RUNTIMES:
        raise ValueError(f'runtime must be one of {tuple(RUNTIMES)}, but is {runtime!r}')
    if runtime.startswith('PyTorch'):
        last = runtime.endswith('channels-last')
        return network_step(name, batch, channels_last=last, phase='inference, BN folded', size=size)
    images = torch.randn(batch, 3, *size)
    if (form := RUNTIMES[runtime]) is None:
        # Dynamo would take the second batch size for a reason to compile for any.
        compiled = torch.compile(ExportableModel(classifier(name)), dynamic=False, options={'freezing': True})
        return torch.no_grad()(partial(compiled, images))
    return partial(FORMATS[form].load(_exported(name, form, size)[1], images.shape), images)


@cache
def _exported(name: str, form: str, size: tuple[int, int]) -> tuple[TemporaryDirectory, Path]:
    """Returns a classifier's file and its folder, which is there while this process runs."""
    from ..export import FORMATS, ExportableModel, export

    folder = TemporaryDirectory()
    path = Path(folder.name, 'model' + FORMATS[form].ending)
    export(ExportableModel(classifier(name)), form, path, size)
    return folder, path
