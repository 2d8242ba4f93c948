"""The suites of ``python -m mmrednet benchmark``, with their default shapes, models, batch sizes and dtypes.

'operator' times the shapes of RedNet-50, and the FPN's finest level with one image. 'network' times
networks. 'memory' measures the operator and networks. 'attention' measures time and memory of local attention, and
'dimensions' the time of involution in one and three dimensions.
"""

from collections.abc import Iterator, Sequence

import torch

from .attention import benchmark_attention, stand_alone
from .candidates import Problem
from .cases import Case, fpn_case, rednet_cases
from .dimensions import benchmark_dimensions, signals
from .memory import benchmark_memory
from .networks import MODELS, PHASES, benchmark_networks
from .operator import benchmark_operator
from .timing import Result, Setting

# The default batch sizes and dtypes with CUDA.
WITH_CUDA = {
    'operator': ((64,), (torch.float32, torch.float16, torch.bfloat16)),
    'network': ((64, 256), (torch.float32, torch.bfloat16)),
    'attention': ((64,), (torch.float32, torch.bfloat16)),
    'dimensions': ((64,), (torch.float32, torch.bfloat16)),
    'memory': ((64,), (torch.float32, torch.bfloat16)),
}


def run_suite(
    suite: str,
    device: torch.device,
    budget: float,
    batches: Sequence[int] = (),
    dtypes: Sequence[torch.dtype] = (),
    channels_last: bool = False,
    quick: bool = False,
    models: Sequence[str] = (),
    compiled: bool = False,
    phases: Sequence[str] = PHASES,
) -> Iterator[Result]:
    """Measures one of the standard suites, and yields milliseconds or MiB.

    ``budget`` is in seconds for each row. ``quick`` measures only two shapes or models, at batch size 1. ``compiled``
    also measures compiled PyTorch code in 'attention'. The other defaults are in ``WITH_CUDA``.
    """
    gpu = device.type == 'cuda'
    torch.backends.cudnn.benchmark = gpu  # cuDNN chooses its fastest kernels
    on_cpu = ((2,) if suite in ('attention', 'dimensions') else (1, 8)), (torch.float32,)
    default_batches, default_dtypes = WITH_CUDA[suite] if gpu else on_cpu
    batches, dtypes = batches or ((1,) if quick else default_batches), dtypes or default_dtypes
    models = models or (('ResNet-50', 'RedNet-50') if quick else MODELS)
    shapes = rednet_cases()[: 2 if quick else None]
    levels = [fpn_case(size) for size in ((800, 800), (800, 1280))[: 0 if quick else 1 + gpu]]

    def problems(involutions: Sequence[tuple[Case, int]], phases: Sequence[str]) -> list[Problem]:
        return [
            Problem(case, batch=batch, dtype=dtype, device=device, channels_last=channels_last, phase=phase)
            for dtype in dtypes
            for phase in phases
            for case, batch in involutions
        ]

    def settings(phases: Sequence[str]) -> list[Setting]:
        last = {dtype: channels_last or dtype != torch.float32 for dtype in dtypes}
        return [
            Setting(batch=batch, dtype=dtype, device=device, channels_last=last[dtype], phase=phase)
            for dtype in dtypes
            for phase in phases
            for batch in batches
        ]

    if suite == 'operator':
        involutions = [(case, batch) for batch in batches for case in shapes] + [(level, 1) for level in levels]
        yield from benchmark_operator(problems(involutions, ('forward', 'backward')), budget)
    elif suite == 'network':
        yield from benchmark_networks(models, settings(phases), budget)
    elif suite == 'attention':
        attentions = stand_alone(batches, dtypes, device, channels_last)[-2 if quick else 0 :]
        yield from benchmark_attention(attentions, budget, compiled)
    elif suite == 'dimensions':
        yield from benchmark_dimensions(signals(batches, dtypes, device)[: 2 if quick else None], budget)
    else:
        involutions = [(shapes[1], batches[-1]), *((level, 1) for level in levels)]  # shapes[1] has the most pixels
        operators, networks = problems(involutions, ('forward', 'training')), settings(('inference', 'training'))
        yield from benchmark_memory(operators, models, networks)
