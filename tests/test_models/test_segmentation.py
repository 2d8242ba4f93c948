import json
import subprocess
import sys
from pathlib import Path

import mmseg.models.necks
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmrednet.layers import Involution

ROOT = Path(__file__).parents[2]
RELEASED = json.loads((ROOT / 'tests' / 'data' / 'released_checkpoint_keys.json').read_text())


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmseg')


def test_fpn_is_the_toolboxs_own_with_the_released_names():
    channels = [256, 512, 1024, 2048]
    neck = MODELS.build(dict(type='mmrednet.InvolutionFPN', in_channels=channels, out_channels=256, num_outs=4))
    assert isinstance(neck, mmseg.models.necks.FPN)
    assert {'neck.' + key: list(value.shape) for key, value in neck.state_dict().items()} == (
        RELEASED['fpn_involution_neck']
    )
    assert all(isinstance(conv, Involution) for conv in neck.fpn_convs)
    sizes = ((17, 25), (9, 13), (5, 7), (3, 4))
    outs = neck([torch.rand(1, c, *size) for c, size in zip(channels, sizes, strict=True)])
    assert [out.shape for out in outs] == [(1, 256, *size) for size in sizes]


@pytest.mark.parametrize(('scope', 'absent'), (('mmdet', ()), ('mmseg', ()), ('mmdet', 'mmseg'), ('mmseg', 'mmdet')))
def test_one_name_resolves_in_either_toolbox(scope, absent):
    """Also where both are installed, or only the one."""
    code = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == {absent!r} else find(name, *a)
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == {absent!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Absent())
from mmengine.registry import init_default_scope
init_default_scope({scope!r})
from {scope}.registry import MODELS
from {scope}.models.necks import FPN
import mmrednet
for name in ('mmrednet.InvolutionFPN', 'InvolutionFPN'):
    neck = MODELS.build(dict(type=name, in_channels=[16], out_channels=16, num_outs=1))
    assert isinstance(neck, FPN), type(neck).__mro__
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
