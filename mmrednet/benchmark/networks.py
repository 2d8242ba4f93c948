"""The time of whole networks: ResNets and RedNets as in the paper's Table 2. It needs mmpretrain."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .timing import Result, Step, labels_of, time_results

MODELS = ('ResNet-50', 'ResNet-101', 'RedNet-26', 'RedNet-38', 'RedNet-50', 'RedNet-101')
PHASES = ('inference', 'inference, BN folded', 'training')


def initialise(model: nn.Module, device: str | torch.device) -> nn.Module:
    """Moves a model from the meta device to ``device``, gives it random weights, and returns it."""
    model = model.to_empty(device=device)
    for module in model.modules():
        if callable(reset := getattr(module, 'reset_parameters', None)):
            reset()
    return model


def classifier(name: str, device: str | torch.device = 'cpu') -> nn.Module:
    """Returns a classifier of Table 1, such as 'RedNet-50', with random weights.

    'RedNet-50/reference' uses the named backend. 'RedNet-50/fused' always generates the kernels inside the operator,
    also in training.
    """
    from ..complexity.tables import ROWS, build_model, load_config

    name, _, variant = name.partition('/')
    rows = {row.model: row for row in ROWS if row.table == '1'}
    if name not in rows:
        raise ValueError(f'model must be one of {tuple(rows)}, but is {name!r}')
    config = load_config(rows[name])
    if variant:
        config.model.backbone.update({'fused': True} if variant == 'fused' else {'backend': variant})
    return initialise(build_model(config), device)


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
    """Returns a function that runs a :func:`classifier` once, on random images of ``size`` (height, width).

    ``phase`` is one of ``PHASES``: 'inference' with the BatchNorm layers as they are, 'inference, BN folded' after
    mmcv's ``fuse_conv_bn``, or 'training', a forward and a backward pass. ``dtype`` is autocast's, none with float32.
    """
    from mmcv.cnn import fuse_conv_bn

    if phase not in PHASES:
        raise ValueError(f'phase must be one of {PHASES}, but is {phase!r}')
    device = torch.device(device)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = classifier(name, device).to(memory_format=memory_format)  # type: ignore[call-overload]
    images = torch.randn(batch, 3, *size, device=device).to(memory_format=memory_format)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    if phase == 'training':
        model.train()
    elif phase == 'inference, BN folded':
        model = fuse_conv_bn(model)
    call = torch.compile(model) if compiled else model

    def infer() -> None:
        with torch.no_grad(), autocast:
            call(images, mode='tensor')

    def train() -> None:
        model.zero_grad()
        with autocast:
            loss = F.cross_entropy(call(images, mode='tensor'), labels)
        loss.backward()

    return train if phase == 'training' else infer


def benchmark_networks(
    models: Sequence[str] = MODELS,
    batches: Sequence[int] = (1,),
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    device: str | torch.device = 'cpu',
    channels_last: bool = False,
    phases: Sequence[str] = PHASES,
    budget: float = 20.0,
) -> Iterator[Result]:
    """Times classifiers of Table 1 in turns, and yields milliseconds. Autocast comes with channels-last."""
    for phase in phases:
        for dtype in dtypes:
            last = channels_last or dtype != torch.float32
            for batch in batches:
                steps = {name: network_step(name, batch, dtype, device, last, phase) for name in models}
                yield from time_results(steps, labels_of(batch, dtype, last, phase), device, budget)
