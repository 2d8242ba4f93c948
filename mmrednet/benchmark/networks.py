"""The time of whole networks: ResNets and RedNets as in the paper's Table 2. It needs mmpretrain."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

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
    """Returns a classifier of Table 1 with random weights.

    Args:
        name (str): 'RedNet-50' or another model of Table 1. 'RedNet-50/reference' uses the named backend.
            'RedNet-50/fused' always generates the kernels inside the operator, also in training.
        device (str or torch.device): The device of the model. Defaults to 'cpu'.

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
        name (str): The model, as in :func:`classifier`.
        batch (int): Batch size. Defaults to 1.
        dtype (torch.dtype): The dtype of autocast. With float32, the default, autocast is off.
        device (str or torch.device): The device of the model. Defaults to 'cpu'.
        channels_last (bool): Whether weights and images are channels-last. Defaults to False.
        phase (str): One of ``PHASES``: 'inference' with the BatchNorm layers as they are, 'inference, BN folded' after
            mmcv's ``fuse_conv_bn``, or 'training', a forward and a backward pass. Defaults to 'inference'.
        size (tuple[int, int]): Height and width of the images. Defaults to (224, 224).
        compiled (bool): Whether the model is compiled by ``torch.compile``. Defaults to False.

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
    """Times classifiers of Table 1, in turns.

    Args:
        models (Sequence[str]): Their names, as in :func:`classifier`. Defaults to those of Table 2 and four more.
        batches (Sequence[int]): Batch sizes. Defaults to (1,).
        dtypes (Sequence[torch.dtype]): Dtypes of autocast, which comes with channels-last. Float32, the default, is
            without autocast.
        device (str or torch.device): The device of the models. Defaults to 'cpu'.
        channels_last (bool): Whether float32 is channels-last, too. Defaults to False.
        phases (Sequence[str]): A selection of ``PHASES``. Defaults to all.
        budget (float): Seconds for each setting, as in :func:`time_in_turns`. Defaults to 20.

    Yields:
        Result: Milliseconds of a model in a setting.
    """
    for phase in phases:
        for dtype in dtypes:
            last = channels_last or dtype != torch.float32
            for batch in batches:
                steps = {name: network_step(name, batch, dtype, device, last, phase) for name in models}
                yield from time_results(steps, labels_of(batch, dtype, last, phase), device, budget)
