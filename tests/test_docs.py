"""The Python in the documents runs as it stands there."""

import re

import pytest
from helpers import ROOT


@pytest.mark.parametrize('path', ('docs/architecture.md', 'README.md'))
def test_python_blocks_run(path):
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / path).read_text(), re.DOTALL)
    # Without an import it is a part of a config.
    blocks = [block for block in blocks if 'import' in block]
    assert blocks
    for block in blocks:
        exec(compile(block, path, 'exec'), {})
