"""The private names of torch that the operators need. A failure names the feature that breaks.

The table is in the docstring of ``mmrednet/ops/dispatcher.py``. The module cannot be imported without them, so
the test reads it as text.
"""

import ast
import re
from importlib import import_module

import pytest
from helpers import ROOT

DOCSTRING = ast.get_docstring(ast.parse((ROOT / 'mmrednet/ops/dispatcher.py').read_text()))
TABLE = {}
for row in re.findall(r'^- (.+?(?=^- |\Z))', DOCSTRING, re.MULTILINE | re.DOTALL):
    names, _, advice = ' '.join(row.split()).partition(': ')
    TABLE |= dict.fromkeys(re.findall(r'``(torch\.[\w.]+)``', names), advice)


@pytest.mark.parametrize('name', TABLE)
def test_torch_still_has(name):
    found, (first, *rest) = None, name.split('.')
    found = import_module(first)
    for i, part in enumerate(rest):
        if not hasattr(found, part):
            try:
                import_module('.'.join((first, *rest[: i + 1])))
            except ImportError:
                pass
        assert hasattr(found, part), f'torch has no {name} any more. This breaks {TABLE[name]}'
        found = getattr(found, part)


def test_the_table_has_every_private_name():
    used = set()
    for folder in ('ops', 'layers'):
        for path in (ROOT / 'mmrednet' / folder).rglob('*.py'):
            code = ast.parse(path.read_text())
            for node in ast.walk(code):
                if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('torch'):
                    private = '._' in node.module
                    used |= {alias.name for alias in node.names if private or alias.name.startswith('_')}
                elif isinstance(node, ast.Attribute) and re.fullmatch(r'(torch|forward_ad)(\.\w+)*', ast.unparse(node)):
                    if re.search(r'\._[^_]', ast.unparse(node)):
                        used.add(node.attr)
    used -= {'_C', '_BatchNorm'}  # a base class that PyTorch's own users import
    assert used == {name.rpartition('.')[2] for name in TABLE} - {'_autograd_function_id'}
