"""Writes and reads docs/compatibility.md, which shows the outcomes of the rows."""

from importlib import import_module
from itertools import groupby

import torch
from helpers import ROOT, cells
from test_compatibility.rows import ROWS, TYPES

PATH = ROOT / 'docs' / 'compatibility.md'
PACKAGES = ('torch', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg')

TEXT = """# Compatibility

This page compares the toolboxes' ResNet-50 with RedNet-50. Each row is a common use of a backbone. The same code runs
with both networks, and only the backbone's `type` differs. The code of each row is in `tests/test_compatibility/`. Most
rows compare numbers. The others only check that no error is raised. The tests write this page.

- *works*: the checks of the row pass. A remark may follow.
- *raises*: the code of the row raised this error.
- *not applicable*: this machine lacks something that the row needs.

A test fails if a row works for ResNet and not for RedNet, or if its result differs from this page:

```bash
# all rows except the slow ones
python -m pytest tests/test_compatibility --all
# all rows
python -m pytest tests/test_compatibility --all --run-slow
# all rows, and writes this page
python -m pytest tests/test_compatibility --all --run-slow --write-docs
```

The slow rows run command-line tools or compilers. Some tools need packages that their toolbox does not install. Without
these packages their rows are skipped: `pip install 'grad-cam<1.5' 'scikit-learn<1.7' seaborn`.

The networks have a quarter of the channels, and most have one or two of the four stages. mmrednet is imported in both
columns. It changes other packages, so that torch's safe mode accepts mmengine's checkpoints. ResNet benefits from this,
too. The tests compare the rows with this page if the machine has these versions:
{versions}.
"""


def versions() -> str:
    """Returns the versions of the packages here, and whether there is a GPU."""
    found = [f'{package} {import_module(package).__version__.partition("+")[0]}' for package in PACKAGES]
    return ', '.join([*found, 'a GPU' if torch.cuda.is_available() else 'no GPU'])


def read() -> dict[str, list[str]]:
    """Returns the committed page's cells beside each feature."""
    return {row[0]: row[1:] for row in cells(PATH.read_text())} if PATH.is_file() else {}


def render(found: dict[str, list[str]]) -> str:
    """Returns the page for the cells beside each feature."""
    parts = [TEXT.format(versions=versions())]
    for section, rows in groupby(ROWS, key=lambda row: row.section):
        rows = list(rows)
        heads = ['feature', *TYPES, *(['run on'] if rows[0].tier == 'slow' else [])]
        table = [heads, ['---'] * len(heads)]
        table += [[row.feature, *found.get(row.feature, ['not run'] * (len(heads) - 1))] for row in rows]
        parts.append(f'## {section}\n\n' + '\n'.join(f'| {" | ".join(line)} |' for line in table) + '\n')
    return '\n'.join(parts)
