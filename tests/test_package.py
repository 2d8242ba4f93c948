"""The sdist and the wheel, as a user has them: made from the checkout, installed apart from it, used from a folder."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import packages_distributions
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np
import pytest
from helpers import DATA, ROOT
from mmengine.config import Config

from mmrednet import __version__
from mmrednet.checkpoint import IMAGENET

# Only these are copied from the checkout, which also has caches, data and environments.
FILES = ('LICENSE', 'MANIFEST.in', 'README.md', 'model-index.yml', 'pyproject.toml', 'setup.cfg')
FOLDERS = ('configs', 'mmrednet', 'tools')
PIP = (sys.executable, '-m', 'pip', '--quiet', '--quiet', '--disable-pip-version-check')
ALONE = ('--no-deps', '--no-index')


def run(*command, cwd, **environment):
    """Runs a command, which must succeed, and returns its output."""
    environment = {**os.environ, 'PYTHONWARNINGS': 'ignore', **environment}
    environment.pop('PYTHONPATH', None)
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


class Environment(NamedTuple):
    """A virtual environment, and the empty folder that its programs run in."""

    root: Path
    folder: Path

    @property
    def packages(self):
        return Path(sysconfig.get_path('purelib', 'venv', dict(base=self.root)))

    def run(self, program, *arguments):
        command = self.root / 'bin' / program, *arguments
        return run(*command, cwd=self.folder, TORCH_HOME=str(self.folder / 'torch'), no_proxy='127.0.0.1')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """A wheel that is built from the sdist, beside it."""
    checkout, dist = tmp_path_factory.mktemp('checkout'), tmp_path_factory.mktemp('dist')
    for name in FILES:
        shutil.copy(ROOT / name, checkout)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, checkout / name, symlinks=True)
    code = f'from setuptools.build_meta import build_sdist; build_sdist({str(dist)!r})'
    run(sys.executable, '-c', code, cwd=checkout)
    (sdist,) = dist.iterdir()
    assert sdist.name == f'mmrednet-{__version__}.tar.gz'
    run(*PIP, 'wheel', *ALONE, '--no-build-isolation', '--wheel-dir', dist, sdist, cwd=dist)
    (wheel,) = dist.glob('*.whl')
    return wheel


@pytest.fixture(scope='module')
def paddle(tmp_path_factory):
    """Stands for PaddleClas: the address of a server that has a RedNet-26 of random weights, and the weights."""
    rng = np.random.default_rng(0)
    shapes = json.loads((DATA / 'paddle_rednet26_keys.json').read_text())
    arrays = {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
    folder = tmp_path_factory.mktemp('paddle')
    (folder / 'RedNet26_pretrained.pdparams').write_bytes(pickle.dumps(arrays, 4))
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}', folder
        server.shutdown()


@pytest.fixture(scope='module')
def installed(wheel, paddle, tmp_path_factory):
    """An environment that has the wheel, and the toolboxes of this one."""
    environment = Environment(tmp_path_factory.mktemp('environment'), tmp_path_factory.mktemp('folder'))
    run(sys.executable, '-m', 'venv', '--without-pip', environment.root, cwd=environment.folder)
    run(*PIP, '--python', environment.root / 'bin' / 'python', 'install', *ALONE, wheel, cwd=environment.folder)
    (environment.packages / 'toolboxes.pth').write_text(sysconfig.get_path('purelib'))
    metafile = environment.packages / 'mmrednet' / '.mim' / 'configs' / 'mmpretrain' / 'metafile.yml'
    publisher = IMAGENET['rednet26'].address.rpartition('/')[0]
    assert metafile.read_text().count(publisher) == 5
    metafile.write_text(metafile.read_text().replace(publisher, paddle[0]))
    return environment


def test_the_wheel_is_for_everyone_and_has_all_files(wheel):
    assert wheel.name == f'mmrednet-{__version__}-py3-none-any.whl'
    expected = {path: path for path in (ROOT / 'mmrednet').rglob('*') if path.is_file()}
    mim = ROOT / 'mmrednet' / '.mim'
    for folder, pattern in (('configs', '*.py'), ('configs', '*.yml'), ('tools', '*.py')):
        expected |= {mim / path.relative_to(ROOT): path for path in (ROOT / folder).rglob(pattern)}
    expected = {str(path.relative_to(ROOT)): file for path, file in expected.items() if file.suffix != '.pyc'}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if '.dist-info/' not in name} == set(expected)
        assert all(archive.read(name) == file.read_bytes() for name, file in expected.items())
    assert {Path(name).suffix for name in expected} >= {'.cpp', '.cu', '.h', '.py', '.typed', '.yml'}


NAMES = """
import pickle
from pathlib import Path
import mmrednet.models
here = {packages!r}
assert mmrednet.__file__.startswith(here), mmrednet.__file__

import mmpretrain, numpy, torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.hub import get_config, get_model
from mmengine.registry import MODELS, DefaultScope
from mmseg.apis import MMSegInferencer

arrays = pickle.loads(Path({file!r}).read_bytes())

def assert_filled(model):
    assert type(model.backbone) is mmrednet.models.rednet.RedNet
    assert torch.equal(model.head.fc.weight, torch.from_numpy(arrays['fc.weight'].T))

def kind(module):
    return type(module).__module__ + '.' + type(module).__name__

# mmengine's hub, and bases by name
config = get_config('mmrednet::mmdet/faster_rcnn_rednet50_invfpn.py')
assert config.filename.startswith(here), config.filename
mine = Config.fromstring("_base_ = 'mmrednet::mmdet/faster_rcnn_rednet50_invfpn.py'", '.py')
with DefaultScope.overwrite_default_scope('mmdet'):
    models = get_model('mmrednet::mmdet/faster_rcnn_rednet50_invfpn.py'), MODELS.build(mine.model)
for model in models:
    assert kind(model) == 'mmdet.models.detectors.faster_rcnn.FasterRCNN'
    assert kind(model.neck) == 'mmrednet.models.detection.InvolutionFPN'
assert_filled(get_model('mmrednet::mmpretrain/rednet26.py', pretrained=True))

# mmpretrain
names = ['rednet101_in1k', 'rednet152_in1k', 'rednet26_in1k', 'rednet38_in1k', 'rednet50_in1k']
assert mmpretrain.list_models('*rednet*') == names
assert_filled(mmpretrain.get_model('rednet26_in1k', pretrained=True))
inferencer = mmpretrain.ImageClassificationInferencer('rednet26_in1k', device='cpu')
assert_filled(inferencer.model)
(result,) = inferencer(numpy.zeros((64, 64, 3), numpy.uint8))
assert result['pred_class'] in inferencer.classes and len(inferencer.classes) == 1000

# detectors and segmentors, by the path of their configs
from mmrednet.configs import find
detector = DetInferencer(find('retinanet_rednet50_invfpn'), device='cpu').model
assert kind(detector.neck) == 'mmrednet.models.detection.InvolutionFPN'
segmentor = MMSegInferencer(find('semantic_fpn_rednet50_invfpn'), device='cpu').model
assert kind(segmentor.neck) == 'mmrednet.models.segmentation.InvolutionFPN'
"""


@pytest.mark.full
def test_names_in_python(installed, paddle):
    file = str(paddle[1] / 'RedNet26_pretrained.pdparams')
    installed.run('python', '-c', NAMES.format(file=file, packages=str(installed.packages)))


def test_the_console_script(installed):
    out = installed.run('mmrednet', 'config', 'faster_rcnn_rednet50_invfpn')
    path = installed.packages / 'mmrednet/.mim/configs/mmdet/faster_rcnn_rednet50_invfpn.py'
    assert path.is_file()
    assert out == installed.run('python', '-m', 'mmrednet', 'config', 'faster_rcnn_rednet50_invfpn') == f'{path}\n'


# OneDL's mim takes the folder of the first file that pip lists for the folder of the package. Here it has the metadata.
finds_wheels = pytest.mark.skipif('mmdet' not in packages_distributions()['mmdet'], reason="OneDL's mim finds no wheel")


@pytest.mark.parametrize('how', (pytest.param('as a wheel', marks=finds_wheels), 'in place'))
@pytest.mark.full
def test_mim_search(how, installed, tmp_path):
    command = '-m', 'mim', 'search', 'mmrednet', '--config', 'rednet50_in1k', 'mask_rcnn_rednet50_fpn'
    out = run(sys.executable, *command, cwd=tmp_path) if how == 'in place' else installed.run('python', *command)
    for word in ('config id: rednet50_in1k', 'imagenet-1k/paddleclas_top_1_accuracy  78.33', 'coco/box_ap'):
        assert word in out


@finds_wheels
@pytest.mark.full
def test_mim_download(installed, paddle):
    installed.run('python', '-m', 'mim', 'download', 'mmrednet', '--config', 'rednet26_in1k', '--dest', '.')
    name = 'RedNet26_pretrained.pdparams'
    assert (installed.folder / name).read_bytes() == (paddle[1] / name).read_bytes()
    assert Config.fromfile(installed.folder / 'rednet26_in1k.py').model.backbone.depth == 26


@finds_wheels
@pytest.mark.full
def test_mim_runs_a_tool_and_trains_a_config_on_ours(installed):
    installed.run('python', '-m', 'mim', 'run', 'mmrednet', 'make_demo_data', '--train', '8', '--val', '4')
    (installed.folder / 'mine.py').write_text(
        "_base_ = __import__('mmrednet.configs').configs.find('mmpretrain/rednet26_demo')\n"
        'train_cfg = dict(max_epochs=1, val_interval=1)\n'
    )
    installed.run('python', '-m', 'mim', 'train', 'mmpretrain', 'mine.py')
    assert (installed.folder / 'work_dirs' / 'mine' / 'epoch_1.pth').is_file()
