"""docs/compatibility.md: what the rows came to, written and read."""

from importlib import import_module
from itertools import groupby

import torch
from helpers import ROOT, cells
from test_compatibility.rows import ROWS, TYPES

PATH = ROOT / 'docs' / 'compatibility.md'
PACKAGES = ('torch', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg')

TEXT = """# Compatibility

What people do with a ResNet-50, done with the toolboxes' ResNet-50 and with RedNet-50 in its place: the same code but
for the backbone's `type`. The tests write this page. Each row is a function in `tests/test_compatibility/`, which says
what "works" means there: mostly that a number is right, not only that nothing was raised.

- *works*: the row's checks hold; what follows is a remark of the row.
- *refuses*: with these words, in the state that the row's code brings about.
- *not applicable*: the machine has not what the row is about.

A row that works for ResNet and not for RedNet fails the tests, and so does a page that disagrees with what they found:

```bash
python -m pytest tests/test_compatibility                          # all rows but the slow ones
python -m pytest tests/test_compatibility --run-slow               # all rows
python -m pytest tests/test_compatibility --run-slow --write-docs  # and writes what was run to this page
```

The slow rows are tools that run as processes, and compilers. Some tools ask for packages that their toolbox does not
bring, and their rows are skipped without them: `pip install 'grad-cam<1.5' 'scikit-learn<1.7' seaborn`.

Networks have a quarter of the channels, and a row that needs no more has one or two of the four stages. mmrednet is
imported in both columns: what it changes in other packages (torch's safe loading of mmengine's checkpoints) helps
ResNet, too. The rows are compared with this page where the machine has the same:
{versions}.
"""


def versions() -> str:
    """Returns what is installed here, and whether a GPU is."""
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
        heads = ['feature', *TYPES, *(['run on'] if rows[0].slow else [])]
        table = [heads, ['---'] * len(heads)]
        table += [[row.feature, *found.get(row.feature, ['not run'] * (len(heads) - 1))] for row in rows]
        parts.append(f'## {section}\n\n' + '\n'.join(f'| {" | ".join(line)} |' for line in table) + '\n')
    return '\n'.join(parts)
