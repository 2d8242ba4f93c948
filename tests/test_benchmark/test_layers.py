"""The report on all involution layers of a model."""

import pytest
import torch
from helpers import cells
from torch import nn

from mmrednet.benchmark.cases import Case, rednet_cases
from mmrednet.benchmark.layers import benchmark_layers, find_calls
from mmrednet.benchmark.timing import Setting
from mmrednet.layers import Involution
from mmrednet.toolboxes import enter_scope, read_config


def test_a_classifier():
    config = read_config('rednet26')
    enter_scope(config, 'rednet26')
    text = benchmark_layers(config, (1, 3, 32, 32), Setting(), budget=0)
    rows = [row for row in cells(text) if row[0].startswith('backbone.')]
    assert [row[2] for row in rows] == [f'1x{case}' for case in rednet_cases(26, (32, 32))]
    assert sum(int(row[1]) for row in rows) == 9 and '9 calls of involution layers' in text
    total = sum(float(row[4]) for row in rows)
    assert f'{total:.0f}%' in text or f'{total - 0.5:.0f}%' in text or f'{total + 0.5:.0f}%' in text


class Model(nn.Module):
    """Calls some of its layers."""

    def __init__(self, layers, called):
        super().__init__()
        self.layers, self.called = nn.ModuleList(layers), called

    def forward(self, images, mode):
        for index in self.called:
            self.layers[index](images)


def test_calls_of_equal_layers_are_counted_together():
    with torch.device('meta'):
        layers = [Involution(16, 3), Involution(16, 3), Involution(16, 5)]
    calls = find_calls(Model(layers, [0, 1, 2, 0]), (2, 16, 6, 5))
    small, large = (Case(16, (6, 5), (k, k)) for k in (3, 5))
    assert calls == {('layers.0', small, (2, 16, 6, 5)): 3, ('layers.2', large, (2, 16, 6, 5)): 1}


def test_a_model_without_involutions():
    with pytest.raises(ValueError, match='no involution layer'):
        find_calls(Model([nn.ReLU()], [0]), (1, 3, 8, 8))
    with pytest.raises(ValueError, match='calls none of its involution layers'):
        find_calls(Model([Involution(16)], []), (1, 3, 8, 8))
