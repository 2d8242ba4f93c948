"""The documents' Python code runs from top to bottom, and their links have targets."""

import re

import pytest
from helpers import ROOT

PAGES = sorted((*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')))


def python_blocks(path):
    return re.findall(r'^```python\n(.*?)^```', path.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize('path', filter(python_blocks, PAGES), ids=lambda path: path.name)
def test_python_blocks_run(path):
    names = {}
    for block in python_blocks(path):
        exec(compile(block, str(path), 'exec'), names)


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r'\]\((?!https?:)([^)\s]+)\)', path.read_text()):
        name, _, anchor = target.partition('#')
        file = path.parent / name if name else path
        assert file.exists(), target
        if anchor:
            headings = re.findall(r'^#+ (.*)', file.read_text(), re.MULTILINE)
            # GitHub's anchors: lower case, no punctuation, hyphens in the place of spaces.
            assert anchor in {re.sub(r'[^\w\- ]', '', h.lower()).replace(' ', '-') for h in headings}, target
