"""Checks of a backend on a device, against plain PyTorch in float64, on streams and in graphs.

They need torch alone, so that a machine without the toolboxes can run them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..benchmark.cases import Case
from ..benchmark.timing import captured
from ..ops import fused_involution2d, involution2d
from ..ops.tolerances import FUSED, SECOND_ORDER, TOLERANCE

# mixed: the input is channels-last, the others are contiguous. sliced: all are parts of larger tensors.
LAYOUTS = ('contiguous', 'channels-last', 'mixed', 'sliced')
REDUCED = 6  # channels R from which the fused operator generates its kernels

# Shapes that are hard for kernels, the most important first: name, batch size, case.
PROBLEMS = (
    ('a stage of RedNet', 2, Case(64, (56, 56), groups=4)),
    ('a small map', 3, Case(64, (7, 7), groups=4)),
    ('odd sizes, stride 2', 2, Case(32, (15, 13), stride=(2, 2), groups=2)),
    ('a map of one pixel', 2, Case(32, (1, 1), groups=2)),
    ('an empty batch', 0, Case(32, (6, 5), groups=2)),
    ('the stem', 1, Case(32, (28, 28), (3, 3), groups=2)),
    ('wide rows', 1, Case(16, (9, 333))),
    ('dilation 2', 1, Case(16, (20, 17), dilation=(2, 2))),
    ('one channel a group', 1, Case(6, (11, 12), (3, 3), groups=6)),
    ('64 channels a group', 1, Case(128, (9, 10), groups=2)),
    ('window 11', 1, Case(16, (20, 17), (11, 11))),
    ('window 21', 1, Case(16, (24, 25), (21, 21))),
    ('two strides and dilations', 1, Case(12, (8, 11), (3, 5), (2, 1), 3, (1, 2))),
    ('stride 3, window 1x7', 1, Case(4, (6, 8), (1, 7), (3, 3), 4)),
)
QUICK = 6  # the number of problems in a quick report


class Tensors(NamedTuple):
    """The arguments of the operators, and the gradient of their output."""

    input: Tensor
    kernel: Tensor
    features: Tensor
    weight: Tensor
    bias: Tensor
    grad: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> 'Tensors':
        """Applies a function to each of them."""
        return Tensors(*map(function, self))


def make_tensors(
    batch: int, case: Case, dtype: torch.dtype, device: str | torch.device, layout: str = 'contiguous'
) -> Tensors:
    """Returns tensors of normally distributed values, the same ones on every device."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, last: bool = layout == 'channels-last') -> Tensor:
        memory_format = torch.channels_last if last and len(shape) == 4 else torch.contiguous_format
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        if layout == 'sliced':
            around = torch.full([size + 3 for size in shape], torch.nan, device=device, dtype=dtype)
            inside = around[tuple(slice(1, size + 1) for size in shape)]
            return inside.copy_(values)
        return values.to(device, dtype).contiguous(memory_format=memory_format)

    taps, size = case.kernel_size[0] * case.kernel_size[1], case.output_size
    return Tensors(
        normal(batch, case.channels, *case.size, last=layout in ('channels-last', 'mixed')),
        normal(batch, case.groups * taps, *size).unflatten(1, (case.groups, *case.kernel_size)),
        normal(batch, REDUCED, *size),
        normal(case.groups * taps, REDUCED, 1, 1),
        normal(case.groups * taps),
        normal(batch, case.channels, *size),
    )


def run(tensors: Tensors, case: Case, backend: str) -> dict[str, Tensor]:
    """Returns the output of the operator, its gradients, second derivatives, and the output of the fused operator."""
    input, kernel, features, weight, bias, grad = tensors.map(lambda t: t.detach().requires_grad_())
    geometry: dict[str, Any] = dict(stride=case.stride, dilation=case.dilation, backend=backend)
    output = involution2d(input, kernel, **geometry)
    grad_input, grad_kernel = torch.autograd.grad(output, (input, kernel), grad, create_graph=True)
    # The tensors themselves are the weights. If they are positive, so are all terms of the sums.
    second = torch.autograd.grad((grad_input, grad_kernel), (input, kernel, grad), (input.detach(), kernel.detach()))
    with torch.no_grad():
        fused = fused_involution2d(input, features, weight, bias, case.kernel_size, **geometry)
    results = dict(forward=output, grad_input=grad_input, grad_kernel=grad_kernel, fused=fused)
    results |= zip(('second order, input', 'second order, kernel', 'second order, grad'), second, strict=True)
    return {name: value.detach() for name, value in results.items()}


def errors(
    batch: int, case: Case, dtype: torch.dtype, device: str | torch.device, layout: str, backend: str
) -> dict[str, float]:
    """Returns the largest error of each result of :func:`run`, divided by the allowed error. At most 1 is right.

    The allowed error of an element is ``TOLERANCE`` times the sum of the absolute values of its terms. For the fused
    operator and for second derivatives, which are sums of sums, it is larger by ``FUSED`` and ``SECOND_ORDER``. The
    truth is plain PyTorch in float64 on the same device with the same values.
    """
    tensors = make_tensors(batch, case, dtype, device, layout)
    actual = run(tensors, case, backend)
    exact = run(tensors.map(Tensor.double), case, 'reference')
    scale = run(tensors.map(lambda t: t.double().abs()), case, 'reference')
    found = {}
    for name, value in actual.items():
        if value.shape != exact[name].shape or value.dtype != dtype:
            raise ValueError(f'{name} has the shape {tuple(value.shape)} and dtype {value.dtype}')
        factor = FUSED if name == 'fused' else SECOND_ORDER if name.startswith('second') else 1
        # An output without a tap inside the input must be zero.
        allowed = (TOLERANCE[dtype] * factor * scale[name]).clamp(min=1e-300)
        error = ((value.double() - exact[name]).abs() / allowed).nan_to_num(nan=torch.inf)
        found[name] = error.max().item() if error.numel() else 0.0
    return found


def behaviour(
    device: str | torch.device, backend: str, case: Case = PROBLEMS[0][2], batch: int = 8
) -> list[tuple[str, Callable[[], str | None]]]:
    """Returns checks that compare several calls: repeated runs, streams, graphs, other devices.

    Each has a name and a function, which returns what is wrong, or None.
    """
    device = torch.device(device)
    checks: dict[str, Callable[[], str | None]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        arguments = make_tensors(batch, case, dtype, device), case, backend
        name = str(dtype).removeprefix('torch.')
        checks[f'20 runs give the same bits, {name}'] = partial(_repeated, *arguments)
        if device.type == 'cuda':
            checks[f'a stream of its own, {name}'] = partial(_on_a_stream, *arguments)
            checks[f'a CUDA graph, replayed with other values, {name}'] = partial(_in_a_graph, *arguments)
    tensors = make_tensors(batch, case, torch.float32, device)
    checks['torch.compile traces it whole'] = partial(_traced, tensors, case, backend)
    if device.type == 'cuda':
        checks['more than 2^31 elements'] = partial(_wide, device, backend)
        if torch.cuda.device_count() > 1:
            tensors = make_tensors(batch, case, torch.float32, torch.device('cuda', 1 - (device.index or 0)))
            checks['a GPU that is not the current one'] = partial(_on_another_device, tensors, case, backend)
    return [*checks.items()]


def _differing(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    wrong = [name for name in expected if not torch.equal(actual[name].cpu(), expected[name].cpu())]
    return f'other bits: {", ".join(wrong)}' if wrong else None


def _repeated(tensors: Tensors, case: Case, backend: str) -> str | None:
    expected = run(tensors, case, backend)
    return next(filter(None, (_differing(run(tensors, case, backend), expected) for _ in range(19))), None)


def _on_a_stream(tensors: Tensors, case: Case, backend: str) -> str | None:
    """Fills the tensors late, on a stream of its own. A kernel on another stream would read the old values."""
    expected = run(tensors, case, backend)
    late = tensors.map(torch.zeros_like)
    stream = torch.cuda.Stream(tensors.input.device)
    stream.wait_stream(torch.cuda.current_stream(tensors.input.device))
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # cycles: about 10 ms
        for to, of in zip(late, tensors, strict=True):
            to.copy_(of)
        actual = run(late, case, backend)
    stream.synchronize()
    return _differing(actual, expected)


def _in_a_graph(tensors: Tensors, case: Case, backend: str) -> str | None:
    held, results = tensors.map(torch.zeros_like), {}
    replay = captured(lambda: results.update(run(held, case, backend)), tensors.input.device)
    for to, of in zip(held, tensors, strict=True):
        to.copy_(of)
    replay()
    torch.cuda.synchronize()
    return _differing(results, run(tensors, case, backend))


def _traced(tensors: Tensors, case: Case, backend: str) -> str | None:
    def compute(input: Tensor, kernel: Tensor) -> Tensor:
        return involution2d(input, kernel, case.stride, dilation=case.dilation, backend=backend)

    torch.compiler.reset()
    compiled = torch.compile(compute, backend='aot_eager', fullgraph=True)
    return _differing({'forward': compiled(*tensors[:2])}, {'forward': compute(*tensors[:2])})


def _wide(device: torch.device, backend: str) -> str | None:
    """Compares the last rows of an involution whose offsets do not fit into 32 bits with the reference."""
    side, rows = 6700, 8
    needed = 49 * side * side * 2 * 1.3
    free, _ = torch.cuda.mem_get_info(device)
    if free < needed:
        raise MemoryError(f'it takes {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} GiB are free')
    input = torch.randn(1, 16, side, side, device=device, dtype=torch.bfloat16)
    kernel = torch.empty(1, 1, 7, 7, side, side, device=device, dtype=torch.bfloat16).normal_()
    actual = involution2d(input, kernel, backend=backend)[:, :, -rows:].double()
    below, last = F.pad(input[:, :, -rows - 3 :], (3, 3, 0, 3)).double(), kernel[..., -rows:, :].double()
    exact, scale = (involution2d(f(below), f(last), padding=0, backend='reference') for f in (torch.clone, torch.abs))
    error = ((actual - exact).abs() / (TOLERANCE[torch.bfloat16] * scale)).max().item()
    return None if error <= 1 else f'{error:.3g} times the error that is allowed'


def _on_another_device(tensors: Tensors, case: Case, backend: str) -> str | None:
    found = run(tensors, case, backend)
    with torch.cuda.device(tensors.input.device):
        return _differing(found, run(tensors, case, backend))
