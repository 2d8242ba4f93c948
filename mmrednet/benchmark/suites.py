"""What ``python -m mmrednet benchmark`` measures where its user names no shapes, models, batch sizes or dtypes."""

from collections.abc import Iterator, Sequence

import torch

from .cases import fpn_case, rednet_cases
from .memory import benchmark_memory
from .networks import MODELS, PHASES, benchmark_networks
from .operator import benchmark_operator
from .runtimes import RUNTIMES, benchmark_runtimes
from .timing import Result

# Batch sizes and dtypes with CUDA. Elsewhere they are 1 and 8, in float32.
WITH_CUDA = {
    'operator': ((64,), (torch.float32, torch.float16, torch.bfloat16)),
    'network': ((64, 256), (torch.float32, torch.bfloat16)),
    'memory': ((64,), (torch.float32, torch.bfloat16)),
}


def run_suite(
    suite: str,
    device: torch.device,
    batches: Sequence[int] | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    channels_last: bool = False,
    models: Sequence[str] | None = None,
    budget: float | None = None,
    quick: bool = False,
    compiled: bool = False,
    phases: Sequence[str] | None = None,
    runtimes: Sequence[str] | None = None,
) -> Iterator[Result]:
    """Measures one of the standard suites, and yields milliseconds or MiB.

    'operator' takes the shapes of RedNet-50 and the FPN's finest level, always with one image; 'memory' is that of the
    operator and of networks; 'runtimes' is on the CPU. ``budget`` is in seconds for each row. ``quick`` is only two
    shapes or models, at batch size 1. The other defaults are in ``WITH_CUDA``.
    """
    gpu = device.type == 'cuda'
    torch.backends.cudnn.benchmark = gpu  # cuDNN chooses its fastest kernels
    default_batches, default_dtypes = WITH_CUDA[suite] if gpu else ((1, 8), (torch.float32,))
    batches, dtypes = batches or ((1,) if quick else default_batches), dtypes or default_dtypes
    models = models or (('ResNet-50', 'RedNet-50') if quick else MODELS)
    if budget is None:
        budget = 0.2 if quick else 20.0
    shapes = rednet_cases()[: 2 if quick else None]
    levels = [fpn_case(size) for size in ((800, 800), (800, 1280))[: 0 if quick else 1 + gpu]]
    if suite == 'operator':
        for cases, sizes in ((shapes, batches), (levels, (1,))):
            yield from benchmark_operator(cases, sizes, dtypes, device, channels_last, budget, compiled)
    elif suite == 'network':
        yield from benchmark_networks(models, batches, dtypes, device, channels_last, phases or PHASES, budget)
    elif suite == 'memory':
        # The first involution of the trunk has the most pixels.
        involutions = {shapes[1]: batches[-1], **dict.fromkeys(levels, 1)}
        yield from benchmark_memory(involutions, models, batches, dtypes, device, channels_last)
    else:
        yield from benchmark_runtimes(batches, runtimes or tuple(RUNTIMES), budget)
