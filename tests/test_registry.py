import sys

import pytest
from helpers import hide, run_python

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
    imports = "custom_imports = dict(imports=['mmrednet'])"
    run_python(code + SNIPPET.format(before='', imports=imports, scope=scope, type='RedNet'))


def test_bare_name_works_where_mmrednet_was_imported_before():
    imports = "custom_imports = dict(imports=['mmrednet'])"
    run_python(SNIPPET.format(before='import mmrednet', imports=imports, scope='mmdet', type='RedNet'))


@pytest.mark.parametrize('scope', ('mmdet', 'mmseg', 'mmpretrain'))
def test_a_toolbox_needs_none_of_the_others(scope):
    others = {'mmdet', 'mmseg', 'mmpretrain'} - {scope}
    run_python(hide(*others) + SNIPPET.format(before='', imports='', scope=scope, type='mmrednet.RedNet'))


def test_the_operator_needs_torch_alone():
    run_python(
        hide('mmcv', 'mmengine', 'mmdet', 'mmseg', 'mmpretrain', 'cupy', 'numpy', 'cv2')
        + 'import torch; from mmrednet.ops import involution2d\n'
        'involution2d(torch.rand(1, 4, 5, 5), torch.rand(1, 2, 3, 3, 5, 5))'
    )


def test_importing_the_package_imports_no_toolbox():
    run_python("import sys, mmrednet; assert not {'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cupy'} & set(sys.modules)")


def test_bare_names_are_all_that_is_registered():
    from mmrednet.registry import BARE_NAMES, MODELS

    MODELS.import_from_location()
    assert set(BARE_NAMES) == set(MODELS.module_dict)


@pytest.mark.parametrize(('version', 'word'), (('0.9.0', '0.9.0'), (None, 'cannot be imported')))
def test_an_old_or_missing_package_names_the_mending_command(version, word, monkeypatch):
    from types import ModuleType

    from mmrednet.requirements import require

    module = ModuleType('mmcv')
    module.__version__ = version
    monkeypatch.setitem(sys.modules, 'mmcv', module if version else None)
    with pytest.raises(ImportError, match=rf'mmcv>=2.1.*{word}.*pip install') as info:
        require('mmcv', '2.1')
    assert word in str(info.value)
