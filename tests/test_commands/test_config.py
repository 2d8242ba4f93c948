"""Configs by name, in Python and on the command line."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from mmengine.config import Config

from mmrednet import configs
from mmrednet.__main__ import main

FILES = {f'{path.parent.name}/{path.stem}': path for path in (ROOT / 'configs').glob('mm*/*.py')}


def test_every_config_is_listed(capsys):
    assert main(['config']) == 0
    assert capsys.readouterr().out.splitlines() == sorted(FILES)


@pytest.mark.parametrize('name', FILES)
def test_every_config_is_found(name, capsys):
    for form in (name, f'{name}.py', FILES[name].stem):
        assert main(['config', form]) == 0
        path = Path(capsys.readouterr().out.removesuffix('\n'))
        assert path.is_absolute() and path.samefile(FILES[name])


def test_names_of_models_are_found():
    assert Path(configs.find('rednet101_in1k')).samefile(FILES['mmpretrain/rednet101'])


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('faster_rcnn_rednet50_infpn', 'do you mean mmdet/faster_rcnn_rednet50_invfpn, '),
        ('mmseg/upernet', 'do you mean mmseg/upernet_rednet50'),
        ('mmdet/upernet_rednet50', 'do you mean mmseg/upernet_rednet50'),
        ('rednet18', 'mmpretrain/rednet'),
        ('_base_/rednet50', 'do you mean mmpretrain/rednet50'),
        ('yolo', 'python -m mmrednet config'),
        ('', 'python -m mmrednet config'),
    ],
)
def test_a_wrong_name_gives_one_line_with_the_nearest_names(name, words, capsys):
    assert main(['config', name]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err.startswith(f'mmrednet config: error: no config is named {name!r}')
    assert words in err and err.count('\n') == 1


def test_it_needs_no_package():
    code = "from mmrednet.__main__ import main; main(['config']); import sys; print(sys.modules.keys())"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert all(f"'{package}'" not in out for package in ('torch', 'numpy', 'mmengine', 'mmcv'))


FIND = "__import__('mmrednet.configs').configs.find('mmdet/mask_rcnn_rednet50_invfpn')"


@pytest.mark.parametrize('base', ("'mmrednet::mmdet/mask_rcnn_rednet50_invfpn.py'", FIND))
def test_bases_by_name(base, tmp_path):
    """``mmrednet::`` needs an import of mmrednet.models before, ``configs.find`` does not."""
    import mmrednet.models  # noqa: F401

    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = {base}\nmodel = dict(backbone=dict(init_cfg=dict(checkpoint='a.pth')))\n")
    # mmengine marks a base from another package with the scope of that package.
    text = Config.fromfile(path).pretty_text.replace("_scope_='mmrednet',", '')
    expected = Config.fromfile(FILES['mmdet/mask_rcnn_rednet50_invfpn'])
    expected.model.backbone.init_cfg.checkpoint = 'a.pth'
    assert Config.fromstring(text, '.py').to_dict() == expected.to_dict()


def test_a_new_style_config_starts_from_ours(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        'from mmengine.config import Config\n'
        'from mmrednet.models.detection import InvolutionRPNHead\n'
        f'globals().update(Config.fromfile({FIND}).to_dict())\n'
        "model['rpn_head'].update(type=InvolutionRPNHead)\n"
    )
    expected = Config.fromfile(FILES['mmdet/mask_rcnn_rednet50_invfpn'])
    expected.model.rpn_head.type = 'mmrednet.models.detection.InvolutionRPNHead'
    Config.fromfile(path).dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == expected.to_dict()
