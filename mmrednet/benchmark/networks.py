"""The time of whole networks: by default those of the paper's Table 2. It needs mmpretrain."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from .timing import Result, Setting, Step, time_results

MODELS = ('ResNet-50', 'ResNet-101', 'SAN19, pairwise', 'Axial ResNet-S', 'RedNet-38', 'RedNet-50')  # of Table 2
PHASES = ('inference', 'inference, BN folded', 'training')


def classifier(name: str, device: str | torch.device = 'cpu') -> nn.Module:
    """Returns a classifier of Table 1 or Figure 2, such as 'RedNet-50' or 'SAN19', with random weights.

    'RedNet-50/reference' uses the named backend. 'RedNet-50/fused' always generates the kernels inside the operator,
    also in training.
    """
    from ..complexity.tables import ROWS, load_config
    from ..toolboxes import build_model

    name, _, variant = name.partition('/')
    rows = {row.model: row for row in ROWS if row.table in ('1', 'F2')}
    if name not in rows:
        raise ValueError(f'model must be one of {tuple(rows)}, but is {name!r}')
    config = load_config(rows[name])
    if variant:
        config.model.backbone.update({'fused': True} if variant == 'fused' else {'backend': variant})
    return build_model(config, name, None).to(device).eval()


def network_step(name: str, setting: Setting, size: tuple[int, int] = (224, 224), compiled: bool = False) -> Step:
    """Returns a function that runs a :func:`classifier` once, on random images of ``size`` (height, width).

    ``setting.phase`` is one of ``PHASES``: 'inference' with the BatchNorm layers as they are, 'inference, BN folded'
    after mmcv's ``fuse_conv_bn``, or 'training', a forward and a backward pass.
    """
    from mmcv.cnn import fuse_conv_bn

    if setting.phase not in PHASES:
        raise ValueError(f'phase must be one of {PHASES}, but is {setting.phase!r}')
    model = classifier(name, setting.device).to(memory_format=setting.memory_format)  # type: ignore[call-overload]
    images = replace(setting, dtype=torch.float32).randn(setting.batch, 3, *size)
    labels = torch.zeros(setting.batch, dtype=torch.long, device=setting.device)
    if setting.phase == 'training':
        model.train()
    elif setting.phase == 'inference, BN folded':
        model = fuse_conv_bn(model)
    call = torch.compile(model) if compiled else model

    def infer() -> None:
        with torch.no_grad(), setting.autocast():
            call(images, mode='tensor')

    def train() -> None:
        model.zero_grad()
        with setting.autocast():
            loss = F.cross_entropy(call(images, mode='tensor'), labels)
        loss.backward()

    return train if setting.phase == 'training' else infer


def benchmark_networks(models: Sequence[str], settings: Sequence[Setting], budget: float) -> Iterator[Result]:
    """Times classifiers in turns, ``budget`` seconds for each setting, and yields milliseconds."""
    for setting in settings:
        steps = {name: network_step(name, setting) for name in models}
        yield from time_results(steps, setting.labels, setting.device, budget)
