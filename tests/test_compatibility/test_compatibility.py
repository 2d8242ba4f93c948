"""Every row of docs/compatibility.md is run, for the toolbox's ResNet-50 and for RedNet-50 in its place."""

import subprocess
import sys
from datetime import date

import pytest
from helpers import ROOT
from test_compatibility import mmengine_rows, page, tool_rows, toolbox_rows, torch_rows  # noqa: F401
from test_compatibility.rows import ROWS, TYPES, Network


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('demo')
    tool = ROOT / 'tools' / 'make_demo_data.py'
    subprocess.run([sys.executable, tool, '--out', folder, '--train', '4', '--val', '2', '--size', '64'], check=True)
    return folder


@pytest.fixture(scope='module')
def cells(request):
    """The page's cells. With --write-docs, the outcomes replace them and the page is written."""
    found = page.read()
    yield found
    if request.config.getoption('--write-docs'):
        page.PATH.write_text(page.render(found))


@pytest.mark.parametrize(
    'row', [pytest.param(row, id=row.name, marks=[getattr(pytest.mark, row.tier)] if row.tier else []) for row in ROWS]
)
@pytest.mark.filterwarnings('ignore')
def test_rednet_does_what_resnet_does(row, cells, data, tmp_path, request):
    outcomes = []
    for name in TYPES:
        folder = tmp_path / name
        folder.mkdir()
        outcomes.append(row.outcome(Network(name, folder, data)))
    resnet, rednet = outcomes
    assert rednet.startswith('works') or not resnet.startswith('works'), f'RedNet {rednet}'
    if request.config.getoption('--write-docs'):
        cells[row.feature] = [*outcomes, *([str(date.today())] if row.tier == 'slow' else [])]
    elif page.versions() in page.PATH.read_text():
        assert cells[row.feature][: len(TYPES)] == outcomes


def test_page_has_these_rows(cells, request):
    features = [row.feature for row in ROWS]
    assert len(set(features)) == len(features)
    if not request.config.getoption('--write-docs') and page.versions() in page.PATH.read_text():
        assert page.render(cells) == page.PATH.read_text()
