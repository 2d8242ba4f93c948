"""The documents' Python code runs from top to bottom, and their links have targets."""

import ast
import re
import shlex
import subprocess
from importlib import import_module

import pytest
from helpers import ROOT

from mmrednet.__main__ import main
from mmrednet.commands import COMMANDS

PAGES = sorted((*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')))


def blocks(path, language):
    return re.findall(rf'^```{language}\n(.*?)^```', path.read_text(), re.DOTALL | re.MULTILINE)


def python_blocks(path):
    return blocks(path, 'python')


@pytest.mark.parametrize('path', filter(python_blocks, PAGES), ids=lambda path: path.name)
def test_python_blocks_run(path):
    names = {}
    for block in python_blocks(path):
        exec(compile(block, str(path), 'exec'), names)


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.name)
def test_other_python_code_imports_what_exists(path):
    """These blocks need files of the reader's own, or other libraries."""
    for block in blocks(path, '(?:text|py)'):
        if 'import ' in block:
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith('mmrednet'):
                    assert all(hasattr(import_module(node.module), name.name) for name in node.names), ast.unparse(node)


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.name)
def test_shell_blocks_can_be_pasted(path, monkeypatch):
    """zsh reads a comment that is pasted as a command: it is a line of its own, without quotes and backticks."""
    for name in COMMANDS:
        monkeypatch.setattr(import_module(f'mmrednet.commands.{name.replace("-", "_")}'), 'run', lambda args: 0)
    for block in blocks(path, 'bash'):
        assert subprocess.run(['bash', '-n'], input=block, text=True, capture_output=True).stderr == ''
        for line in block.replace('\\\n', ' ').splitlines():
            assert not re.search(r'^#.*[`\'"]|\S +# ', line), line
            words = shlex.split(line, comments=True)
            if words[:3] == ['python', '-m', 'mmrednet']:
                assert main(words[3:]) == 0, line
            for word in words:
                if re.match(r'(configs|tools|tests)/[\w/]+(\.\w+)?$', word):
                    assert (ROOT / word).exists(), word


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
