"""The tutorial's notebook runs from top to bottom, with a few images."""

import os
import sys
from importlib.metadata import packages_distributions

import nbformat
import pytest
from helpers import ROOT
from nbclient import NotebookClient


@pytest.mark.full
def test_the_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', f'{os.path.dirname(sys.executable)}{os.pathsep}{os.environ["PATH"]}')
    notebook = nbformat.read(ROOT / 'docs/tutorial.ipynb', as_version=4)
    scale = next(cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', ()))
    assert scale.source.count("800, 4, 'work_dirs/tutorial'") == 1
    scale.source = scale.source.replace("800, 4, 'work_dirs/tutorial'", f'8, 1, {str(tmp_path)!r}')
    for cell in notebook.cells:
        for command, toolbox in (('train', 'mmdet'), ('run', 'mmpretrain')):
            # OneDL's mim needs the name of its distribution.
            (distribution,) = packages_distributions()[toolbox]
            cell.source = cell.source.replace(f'mim {command} {toolbox} ', f'mim {command} {distribution} ')
    NotebookClient(notebook, timeout=600, resources={'metadata': {'path': ROOT / 'docs'}}).execute()
    # A command that fails does not stop the notebook, so its results are checked.
    outputs = [str(output) for cell in notebook.cells for output in cell.get('outputs', ())]
    assert any('Average Precision' in output for output in outputs)
    assert (tmp_path / 'curves.png').stat().st_size > 0
    assert len(list((tmp_path / 'found').glob('*.png'))) == 4
    assert list((tmp_path / 'seen').glob('*.png'))
    assert sum('image/png' in output for output in outputs) >= 4
