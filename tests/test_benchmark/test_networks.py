from functools import partial

import pytest
import torch
from torch import nn

from mmrednet.benchmark import networks
from mmrednet.benchmark.networks import PHASES, benchmark_networks, classifier, network_step
from mmrednet.benchmark.timing import Setting
from mmrednet.models.rednet import RedNet


def test_network_in_mixed_precision(monkeypatch):
    model = classifier('RedNet-26')
    monkeypatch.setattr(networks, 'classifier', lambda *args: model)
    conv, dtypes = model.backbone.stem[0].conv, []
    conv.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    network_step('RedNet-26', Setting(batch=2, dtype=torch.bfloat16, channels_last=True, phase='training'), (64, 64))()
    assert dtypes == [torch.bfloat16] and not conv.weight.is_contiguous()
    for parameter in model.parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all()


def test_unknown_network_and_phase():
    with pytest.raises(ValueError, match="model must be one of .* but is 'RedNet-51'"):
        network_step('RedNet-51', Setting(phase='inference'))
    with pytest.raises(ValueError, match="phase must be one of .* but is 'test'"):
        network_step('RedNet-26', Setting(phase='test'))


def test_networks(monkeypatch):
    monkeypatch.setattr(networks, 'network_step', partial(network_step, size=(64, 64)))
    models = ('ResNet-26', 'RedNet-26', 'RedNet-26/torch')
    results = list(benchmark_networks(models, [Setting(phase=phase) for phase in PHASES], budget=0))
    assert [(r.labels['phase'], r.candidate) for r in results] == [(p, m) for p in PHASES for m in models]
    assert all(len(r.samples) == 7 for r in results)


def test_norms_are_folded_but_for_those_after_an_involution():
    fuse_conv_bn = pytest.importorskip('mmcv.cnn').fuse_conv_bn
    model, images = RedNet(26, zero_init_residual=False), torch.randn(2, 3, 64, 64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Takes the statistics of the next batch.
            module.momentum = None
            nn.init.uniform_(module.bias)
    with torch.no_grad():
        model.train()(images)
    model.eval()
    with torch.no_grad():
        (expected,), (folded,) = model(images), fuse_conv_bn(model)(images)
    torch.testing.assert_close(folded, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    left = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == ['stem.2', *(f'layer{i + 1}.{j}.bn2' for i, n in enumerate((1, 2, 4, 1)) for j in range(n))]
