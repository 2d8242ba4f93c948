"""The documents' Python code runs from top to bottom, and their links have targets."""

import ast
import re
import shlex
import subprocess
from importlib import import_module

import pytest
import torch
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


@pytest.mark.parametrize(
    ('dilation', 'causal'), [(1, (False, False)), (2, (False, False)), (1, (True, False)), (2, (False, True))]
)
def test_the_code_for_users_of_natten(dilation, causal):
    """Compares it with loops over the pixels: windows are moved into the image, or hold the last pixels if causal."""
    names = {}
    exec(python_blocks(ROOT / 'docs' / 'coming_from_natten.md')[0], names)
    k, size = 3, (7, 8)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, *size, 4, dtype=torch.float64) for _ in range(3))
    rpb = torch.randn(2, 2 * k - 1, 2 * k - 1, dtype=torch.float64)

    def neighbours(i, length, causal):
        same_phase = range(i % dilation, length, dilation)
        at = same_phase.index(i)
        if causal:
            return same_phase[max(0, at - k + 1) : at + 1]
        first = min(max(at - k // 2, 0), len(same_phase) - k)
        return same_phase[first : first + k]

    expected = torch.empty_like(query)
    for head in range(2):
        for i in range(size[0]):
            for j in range(size[1]):
                rows, columns = (neighbours(*a) for a in zip((i, j), size, causal, strict=True))
                pixels = [(y, x) for y in rows for x in columns]
                logits = [
                    query[0, head, i, j] @ key[0, head, y, x]
                    + rpb[head, (y - i) // dilation + k - 1, (x - j) // dilation + k - 1]
                    for y, x in pixels
                ]
                weights = torch.stack(logits).softmax(0)
                expected[0, head, i, j] = sum(
                    w * value[0, head, y, x] for w, (y, x) in zip(weights, pixels, strict=True)
                )
    assert torch.allclose(names['natten2d'](query, key, value, k, dilation, causal, rpb), expected)
