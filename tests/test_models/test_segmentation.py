import mmseg.models.necks
import pytest
import torch
from helpers import RELEASED, hide, run_python
from mmseg.registry import MODELS

from mmrednet.layers import Involution

SCOPE = 'mmseg'


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


@pytest.mark.parametrize(
    ('scope', 'absent'), (('mmdet', ()), ('mmseg', ()), ('mmdet', ('mmseg',)), ('mmseg', ('mmdet',)))
)
def test_one_name_resolves_in_either_toolbox(scope, absent):
    """Also where both are installed, or only the one."""
    run_python(f"""
{hide(*absent)}
from mmengine.registry import init_default_scope
init_default_scope({scope!r})
from {scope}.registry import MODELS
from {scope}.models.necks import FPN
import mmrednet
for name in ('mmrednet.InvolutionFPN', 'InvolutionFPN'):
    neck = MODELS.build(dict(type=name, in_channels=[16], out_channels=16, num_outs=1))
    assert isinstance(neck, FPN), type(neck).__mro__
""")
