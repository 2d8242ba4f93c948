import os
import pwd
import sys
from configparser import ConfigParser
from getpass import getuser

import pytest
from helpers import ROOT, TORCH_ALONE, ConstantKernel, hide, run_python
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope

from mmrednet.models.involution import build_involution
from mmrednet.patches import name_the_user
from mmrednet.registry import MODELS
from mmrednet.requirements import MINIMUM

SNIPPET = """
import sys
{before}
from mmengine.config import Config
from mmengine.registry import init_default_scope
config = Config.fromstring('''
{imports}
default_scope = '{scope}'
backbone = dict(type='{type}', depth=26)
''', '.py')
init_default_scope('{scope}')
from {scope}.registry import MODELS
model = MODELS.build(config.backbone)
assert type(model).__module__ == 'mmrednet.models.rednet', type(model)
"""


@pytest.mark.parametrize('scope', ('mmdet', 'mmseg', 'mmpretrain'))
def test_type_names_work_in_every_toolbox(scope):
    code = SNIPPET.format(before='', imports='', scope=scope, type='mmrednet.RedNet')
    imports = "custom_imports = dict(imports=['mmrednet.models'])"
    run_python(code + SNIPPET.format(before='', imports=imports, scope=scope, type='RedNet'))


def test_bare_name_works_where_mmrednet_was_imported_before():
    imports = "custom_imports = dict(imports=['mmrednet.models'])"
    run_python(SNIPPET.format(before='import mmrednet', imports=imports, scope='mmdet', type='RedNet'))


@pytest.mark.parametrize('scope', ('mmdet', 'mmseg', 'mmpretrain'))
def test_a_toolbox_needs_none_of_the_others(scope):
    others = {'mmdet', 'mmseg', 'mmpretrain'} - {scope}
    run_python(hide(*others) + SNIPPET.format(before='', imports='', scope=scope, type='mmrednet.RedNet'))


def test_the_operator_needs_torch_alone():
    run_python(
        'import torch; from mmrednet.ops import involution2d\n'
        'involution2d(torch.rand(1, 4, 5, 5), torch.rand(1, 2, 3, 3, 5, 5))',
        TORCH_ALONE,
    )


def test_the_layer_needs_torch_alone():
    run_python(
        'import torch; from mmrednet.layers import Involution\n'
        'assert Involution(32, stride=2)(torch.rand(2, 32, 9, 8)).shape == (2, 32, 5, 4)',
        TORCH_ALONE,
    )


@pytest.mark.parametrize('module', ('mmrednet', 'mmrednet.ops', 'mmrednet.layers'))
def test_importing_it_imports_no_toolbox(module):
    absent = {'mmcv', 'mmengine', 'mmdet', 'mmseg', 'mmpretrain', 'cupy'}
    run_python(f'import sys, {module}; assert not {absent!r} & set(sys.modules)', 'import torch')


def test_everything_registered_has_a_bare_name():
    MODELS.import_from_location()
    assert {'RedNet', 'Involution', 'InvolutionFPN', 'InvolutionRPNHead'} <= set(MODELS.module_dict)
    assert all(MMENGINE_MODELS.module_dict[name] is module for name, module in MODELS.module_dict.items())


@pytest.mark.parametrize('fault', ('assert False, "too old"', '__version__ = "0.1"', 'import nothing_such'))
def test_a_broken_toolbox_gives_a_warning_and_the_others_work(fault, tmp_path):
    (tmp_path / 'mmseg').mkdir()
    (tmp_path / 'mmseg' / '__init__.py').write_text(fault)
    run_python(
        f'import sys, warnings; sys.path.insert(0, {str(tmp_path)!r})\n'
        'with warnings.catch_warnings(record=True) as caught:\n'
        '    warnings.simplefilter("always")\n'
        '    import mmrednet.models\n'
        'assert any("mmseg>=" in str(w.message) and "pip install" in str(w.message) for w in caught), caught\n'
        + SNIPPET.format(before='', imports='', scope='mmdet', type='mmrednet.RedNet')
    )


@pytest.mark.parametrize('scope', ('mmpose', 'mmocr', 'mmrotate'))
def test_other_scopes_get_the_involution_fpn_of_mmdet(scope):
    from mmdet.models.necks import FPN

    with DefaultScope.overwrite_default_scope(scope):
        assert isinstance(MODELS.get('mmrednet.InvolutionFPN')([16], 16, 1), FPN)


@pytest.mark.parametrize('order', ('import mmrednet, mmengine.infer', 'import mmengine.infer, mmrednet'))
def test_inferencers_of_any_toolbox_load_safely_after_importing_mmrednet(order):
    """They read a checkpoint before they build the model, which would import the registry."""
    run_python(
        f'{order}\n'
        'import torch\n'
        'from mmengine.logging import HistoryBuffer\n'
        'assert HistoryBuffer in torch.serialization.get_safe_globals()'
    )


def test_versions_are_those_that_the_distribution_names():
    config = ConfigParser()
    config.read(ROOT / 'setup.cfg')
    lines = config['options.extras_require']['openmmlab'].split() + config['options']['install_requires'].split()
    named = dict(line.split(',')[0].split('>=') for line in lines if '>=' in line)
    named['mmseg'] = named.pop('mmsegmentation')
    assert {package: named[package] for package in MINIMUM} == MINIMUM


@pytest.mark.parametrize(('version', 'word'), (('0.9.0', '0.9.0'), (None, 'cannot be imported')))
def test_an_old_or_missing_package_names_the_mending_command(version, word, monkeypatch):
    from types import ModuleType

    from mmrednet.requirements import require

    module = ModuleType('mmcv')
    module.__version__ = version
    monkeypatch.setitem(sys.modules, 'mmcv', module if version else None)
    with pytest.raises(ImportError, match=rf'mmcv>=2.1.*{word}.*pip install') as info:
        require('mmcv')
    assert word in str(info.value)


def test_a_kernel_generation_function_of_a_toolbox_is_found_by_its_bare_name():
    from mmdet.registry import MODELS as MMDET_MODELS

    MMDET_MODELS.register_module(module=ConstantKernel, force=True)
    with DefaultScope.overwrite_default_scope('mmdet'):
        layer = build_involution(channels=16, kernel_generation=dict(type='ConstantKernel'))
    assert isinstance(layer.kernel_generation, ConstantKernel)


def test_a_user_without_a_name_gets_one(monkeypatch):
    for variable in ('LOGNAME', 'USER', 'LNAME', 'USERNAME'):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, 'getpwuid', {}.__getitem__)
    name_the_user()
    assert getuser() == f'uid{os.getuid()}'
    monkeypatch.setenv('USER', 'me')
    name_the_user()
    assert getuser() == 'me'
