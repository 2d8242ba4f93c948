"""The operator and what it is compared with: copies, convolutions, compiled formulas. It needs torch alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import fused_involution2d, involution2d
from ..ops.backends import TABLE, reference
from ..ops.backends.pytorch import generate_kernel
from ..ops.onnx import sum_of_taps
from . import naive_cuda
from .cases import Case
from .timing import Labels, Setting, Step

GENERATING = ('unfused', 'fused')  # these candidates generate the kernels, too
COMPILED = ('compiled unfold', 'compiled taps')  # torch.compile of two forms of the plain formula


@dataclass(frozen=True)
class Problem(Setting):
    """One call of the operator: an involution in a setting.

    ``phase`` is 'forward', 'backward' (both gradients, after a forward pass that is not timed) or 'training' (a forward
    pass and both gradients).
    """

    case: Case

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (self.batch, self.case.channels, *self.case.size)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """(N, G * Kh * Kw, Ho, Wo): the kernels as a 1x1 convolution writes them."""
        return (self.batch, self.case.groups * prod(self.case.kernel_size), *self.case.output_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(N, C, Ho, Wo)."""
        return (self.batch, self.case.channels, *self.case.output_size)

    @property
    def moved_bytes(self) -> int:
        """The bytes of input, kernel and output. Backward: those of input, kernel and all three gradients."""
        passes = 1 if self.phase == 'forward' else 2
        values = passes * (prod(self.input_shape) + prod(self.kernel_shape)) + prod(self.output_shape)
        return values * self.dtype.itemsize

    @property
    def labels(self) -> Labels:
        """The labels of a :class:`.Result` of this problem."""
        return {'shape': str(self.case), **super().labels}

    def kernel(self) -> Tensor:
        """Returns random kernels (N, G, Kh, Kw, Ho, Wo)."""
        return self.randn(*self.kernel_shape).unflatten(1, (self.case.groups, *self.case.kernel_size))


def _floor(problem: Problem) -> Step:
    source = torch.ones(
        ceil(problem.moved_bytes / 2 / problem.dtype.itemsize), dtype=problem.dtype, device=problem.device
    )
    return partial(torch.empty_like(source).copy_, source)


def _depthwise(problem: Problem) -> Step:
    case = problem.case
    weight = problem.randn(case.channels, 1, *case.kernel_size)
    geometry = dict(stride=case.stride, padding=case.padding, dilation=case.dilation)
    convolve = partial(F.conv2d, **geometry, groups=case.channels)
    return problem.step(convolve, (problem.randn(*problem.input_shape), weight), problem.output_shape)


def _naive(problem: Problem) -> Step:
    geometry = problem.case.stride, problem.case.padding, problem.case.dilation
    kernel, input, output = problem.kernel(), problem.randn(*problem.input_shape), problem.randn(*problem.output_shape)
    grad_input, grad_kernel = torch.empty_like(input), torch.empty_like(kernel)

    def step() -> None:
        if problem.phase != 'backward':
            naive_cuda.launch('forward', output, input, kernel, output, *geometry)
        if problem.phase != 'forward':
            naive_cuda.launch('grad_input', grad_input, grad_input, kernel, output, *geometry)
            naive_cuda.launch('grad_kernel', grad_kernel, input, grad_kernel, output, *geometry)

    return step


def _backend(name: str, problem: Problem) -> Step:
    involve = partial(involution2d, stride=problem.case.stride, dilation=problem.case.dilation, backend=name)
    return problem.step(involve, (problem.randn(*problem.input_shape), problem.kernel()), problem.output_shape)


def _generating(function: Callable[..., Tensor], problem: Problem) -> Step:
    case, channels = problem.case, problem.kernel_shape[1]
    features = problem.randn(problem.batch, max(case.channels // 4, 1), *case.output_size)
    weight, bias = problem.randn(channels, features.shape[1], 1, 1), problem.randn(channels)
    involve = partial(function, kernel_size=case.kernel_size, stride=case.stride, dilation=case.dilation)
    return problem.step(involve, (problem.randn(*problem.input_shape), features, weight, bias), problem.output_shape)


def _unfused(input, features, weight, bias, kernel_size, stride, dilation) -> Tensor:
    """Computes what ``fused_involution2d`` computes, in two calls."""
    return involution2d(input, generate_kernel(features, weight, bias, kernel_size), stride, dilation=dilation)


def _compiled(form: Callable[..., Tensor], problem: Problem) -> Step:
    case = problem.case
    # With fullgraph, dynamo raises an error at its limit of recompilations. It would run uncompiled code otherwise.
    compiled = torch.compile(form, fullgraph=True, dynamic=False)
    involve = partial(compiled, stride=case.stride, padding=case.padding, dilation=case.dilation)
    return problem.step(involve, (problem.randn(*problem.input_shape), problem.kernel()), problem.output_shape)


CANDIDATES: dict[str, Callable[[Problem], Step]] = {
    'floor': _floor,
    'depthwise': _depthwise,
    'naive': _naive,
    'unfused': partial(_generating, _unfused),
    'fused': partial(_generating, fused_involution2d),
    'compiled unfold': partial(_compiled, reference.involution2d),
    'compiled taps': partial(_compiled, sum_of_taps),
}


def operator_step(candidate: str, problem: Problem) -> Step:
    """Returns a function that runs a candidate once, on random tensors.

    A candidate is a backend of the operator, 'reference', or one of ``CANDIDATES``:

    - 'floor' copies a tensor of half the bytes that the operator has to move, since each byte is read and written.
    - 'depthwise' is the depthwise convolution with the same window and shapes.
    - 'naive' runs the straightforward CUDA kernels, on contiguous tensors.
    - 'unfused' and 'fused' also generate the kernels, from C / 4 channels. 'unfused' is a 1x1 convolution and then the
      fastest backend, 'fused' is ``fused_involution2d``.
    - 'compiled unfold' is ``torch.compile`` of 'reference', 'compiled taps' of :func:`.onnx.sum_of_taps`.
    """
    candidates = CANDIDATES | {name: partial(_backend, name) for name in ('reference', *TABLE)}
    if candidate not in candidates:
        raise ValueError(f'candidate must be one of {tuple(candidates)}, but is {candidate!r}')
    return candidates[candidate](problem)


def working_backends(device: str | torch.device) -> list[str]:
    """Returns 'reference' and the backends that work on a device."""
    working = []
    for backend in ('reference', *TABLE):
        try:
            involution2d(torch.ones(1, 1, 1, 1, device=device), torch.ones((1,) * 6, device=device), backend=backend)
        except (RuntimeError, ValueError):  # its compiler is missing, or it is for another device
            continue
        working.append(backend)
    return working
