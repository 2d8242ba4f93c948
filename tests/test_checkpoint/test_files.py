"""The sources of checkpoints and their formats: Paddle's, safetensors, URLs (from a server on this machine)."""

import errno
import gzip
import hashlib
import io
import json
import os
import pickle
import sys
import tempfile
import zipfile
from collections import OrderedDict
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from helpers import DATA, ROOT, registry, run_python
from mmengine.config import Config
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import load_checkpoint
from torch.torch_version import TorchVersion

from mmrednet.__main__ import main
from mmrednet.checkpoint import IMAGENET, files, load, read, save
from mmrednet.models.rednet import RedNet

# The names and shapes of a whole RedNet-26 of PaddleClas.
PADDLE = json.loads((DATA / 'paddle_rednet26_keys.json').read_text())


def arrays():
    """A RedNet-26 in Paddle's layout. Its values keep features from growing, since involution squares them."""
    rng = np.random.default_rng(0)
    state = {}
    for name, shape in PADDLE.items():
        value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else rng.random(shape)
        state[name] = (value + 8 * name.endswith('_variance')).astype(np.float32)
    return state


@pytest.fixture(scope='module')
def paddle_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('paddle') / 'RedNet26_pretrained.pdparams'
    path.write_bytes(pickle.dumps({**arrays(), 'StructuredToParameterName@@': {'fc.weight': 'linear_0.w_0'}}, 4))
    return path


def classifier():
    config = Config.fromfile(ROOT / 'configs' / 'mmpretrain' / 'rednet26.py')
    return registry('mmpretrain').build(config.model)


def test_a_file_that_paddle_wrote(tmp_path):
    path = tmp_path / 'stem_and_layer1.pdparams'
    path.write_bytes(gzip.decompress((DATA / 'paddle_stem_and_layer1.pdparams.gz').read_bytes()))
    with open(path, 'rb') as file:
        written = pickle.load(file)
    del written['StructuredToParameterName@@']
    model = RedNet(
        26, num_stages=1, out_indices=(0,), init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.')
    )
    model.init_weights()
    # PyTorch's and Paddle's names of buffers.
    names = {
        name.replace('running_mean', '_mean').replace('running_var', '_variance'): value.numpy()
        for name, value in model.state_dict().items()
        if not name.endswith('num_batches_tracked')
    }
    assert names.keys() == written.keys()
    for name, value in written.items():
        np.testing.assert_array_equal(names[name], value)


# Some versions of Paddle write the array's name beside it.
@pytest.mark.parametrize(('protocol', 'named', 'order'), ((2, False, '<'), (3, True, '<'), (4, False, '>')))
def test_paddle_layouts(protocol, named, order, tmp_path):
    state = {name: value.astype(f'{order}f4') for name, value in arrays().items()}
    path = tmp_path / 'rednet26.pdparams'
    written = {name: (f'p_{i}', value) for i, (name, value) in enumerate(state.items())} if named else state
    path.write_bytes(pickle.dumps(written, protocol))
    model = classifier()
    load_checkpoint(model, str(path), strict=True)
    assert load(path)['state_dict'].keys() == model.state_dict().keys()
    x = torch.rand(2, 2048)
    np.testing.assert_allclose(model.head.fc(x).detach(), x.numpy() @ state['fc.weight'] + state['fc.bias'], 1e-4, 1e-4)
    assert torch.equal(
        model.backbone.layer4[0].bn2.running_var.double(),
        torch.tensor(state['layer4.0.bn2._variance'].tolist()).double(),
    )
    assert model.backbone.layer4[0].bn2.num_batches_tracked == 0


@pytest.mark.parametrize('fortran', (False, True))
def test_array_orders_and_types(fortran, tmp_path):
    value = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    path = tmp_path / 'a.pdparams'
    path.write_bytes(
        pickle.dumps(
            dict(a=np.asfortranarray(value) if fortran else value, b=np.float16([1.5]), c=np.int64(0).reshape(1)), 4
        )
    )
    parameters = read(path)['pdparams']
    assert parameters['a'].tolist() == value.tolist() and parameters['a'].dtype == torch.float64
    assert parameters['b'].dtype == torch.float16 and parameters['b'].tolist() == [1.5]


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(mark):
    touch = f'touch {mark}'
    return {
        'posix.system': Call(os.system, touch),
        'builtins.eval': Call(eval, f'open({str(mark)!r}, "w")'),
        'builtins.getattr': Call(getattr, np.ndarray, 'tofile'),
        'functools.partial': Call(partial, os.system, touch),
        'builtins.__import__': Call(__import__, 'os'),
        'numpy.fromfile': b'cnumpy\nfromfile\n(S"/dev/null"\ntR.',
        'numpy._core.multiarray.fromfile': b'cnumpy._core.multiarray\nfromfile\n(S"/dev/null"\ntR.',
        'numpy._core.multiarray.scalar': np.float64(1),
        # An attribute of an allowed class.
        'numpy.ndarray.tofile': b'\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.',
        "type 'O8'": np.array([Call(os.system, touch)], object),
        # The state of the dtype would define which bytes are objects.
        "type 'V8'": np.zeros(1, [('a', 'O')]),
        "'a' is not an array": 1,
        'encoding': Call(__import__('_codecs').encode, 'touch', 'no such codec'),
    }


@pytest.mark.parametrize('what', attacks(''))
@pytest.mark.parametrize('protocol', (2, 4))
def test_code_in_paddle_files_does_not_run(what, protocol, tmp_path):
    mark, path = tmp_path / 'mark', tmp_path / 'evil.pdparams'
    attack = attacks(mark)[what]
    # The name of NumPy's private module depends on the version that writes the file.
    path.write_bytes(attack if isinstance(attack, bytes) else pickle.dumps(dict(a=attack), protocol, fix_imports=False))
    with pytest.raises(ValueError, match='evil.pdparams') as error:
        load(path)
    assert what in str(error.value).replace('nt.system', 'posix.system').replace('numpy.core', 'numpy._core')
    assert not mark.exists()


def dense(stem_kernel_size, checkpoint):
    init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint), prefix='backbone.')
    model = RedNet(26, stem_kernel_size=stem_kernel_size, out_indices=(0, 1, 2, 3), init_cfg=init_cfg).double()
    model.init_weights()
    return model.double().eval()


def test_a_3x3_stem_starts_a_7x7_stem_exactly(paddle_file, monkeypatch):
    said = []
    monkeypatch.setattr('mmrednet.checkpoint.layout.print_log', lambda text, **_: said.append(text))
    small, large = dense(3, paddle_file), dense(7, paddle_file)
    assert len(said) == 1 and 'stem.1 (3x3 to 7x7)' in said[0]
    x = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        for expected, out in zip(small(x), large(x), strict=True):
            assert expected.std() > 1e-3
            torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
        # Tap (i, j) of 3x3 is tap (i + 2, j + 2) of 7x7, in each of the groups.
        features = torch.randn(1, 32, 9, 9, dtype=torch.float64)
        kernel = large.stem[1].generate_kernel(features)
        expected = small.stem[1].generate_kernel(features)
    torch.testing.assert_close(kernel[:, :, 2:5, 2:5], expected, rtol=1e-12, atol=1e-12)
    assert kernel.count_nonzero() == 2 * 9 * 81


def runner(scope, config, folder, **changes):
    config = Config({key: config[key] for key in ('model', 'default_scope', 'default_hooks', 'runner_type', 'env_cfg')})
    config.merge_from_dict(dict(work_dir=str(folder), experiment_name=folder.name, **changes))
    init_default_scope(scope)
    return RUNNERS.build(config)


def test_widening_is_for_starts_only(paddle_file, tmp_path):
    """A test with a widened stem would not test the network in the file."""
    config = Config.fromfile(ROOT / 'configs' / 'mmpretrain' / 'rednet26.py')
    load_from = str(paddle_file)
    runner('mmpretrain', config, tmp_path, load_from=load_from).load_or_resume()
    config.model.backbone.stem_kernel_size = 7
    started = runner('mmpretrain', config, tmp_path, load_from=load_from)
    started.optim_wrapper = started.build_optim_wrapper(dict(optimizer=dict(type='SGD', lr=0.1)))
    started.load_or_resume()
    weight = load(paddle_file)['state_dict']['backbone.stem.1.conv2.conv.weight']
    wide = started.model.backbone.stem[1].conv2.conv.weight.unflatten(0, (2, 7, 7))
    assert torch.equal(wide[:, 2:5, 2:5].flatten(0, 2), weight) and wide.count_nonzero() == weight.count_nonzero()
    with pytest.raises(ValueError, match='2 of another shape: backbone.stem.1.conv2.conv.weight'):
        runner('mmpretrain', config, tmp_path, load_from=load_from).load_or_resume()


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.files``, and announces one byte more of those whose names begin with 'short'."""

    def do_GET(self):
        self.server.asked.append(self.path)
        data = self.server.files.get(self.path)
        self.send_response(404 if data is None else 200)
        if data is not None:
            self.send_header('Content-Length', str(len(data) + self.path.startswith('/short')))
        self.end_headers()
        self.wfile.write(data or b'')

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.files, server.asked = {}, []
        server.address = f'http://127.0.0.1:{server.server_port}'
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch' / 'hub' / 'checkpoints'


@pytest.fixture
def served(server, paddle_file):
    """The address of a RedNet-26 in Paddle's format, and its SHA-256."""
    server.files['/RedNet26_pretrained.pdparams'] = data = paddle_file.read_bytes()
    return f'{server.address}/RedNet26_pretrained.pdparams', hashlib.sha256(data).hexdigest()


def test_every_way_takes_an_address(served, server, cache, tmp_path, capfd):
    """init_cfg, load_from and --checkpoint (one key of the config), mmengine's own loader, and the tool."""
    address, sha256 = served
    expected = load(address)['state_dict']
    (copied,) = cache.iterdir()
    assert copied.name.endswith('-RedNet26_pretrained.pdparams') and address.split('/')[2] not in copied.name
    assert '100%' in capfd.readouterr().err  # the progress bar
    stated = f'{address}#sha256={sha256[:16].upper()}'
    config = Config.fromfile(ROOT / 'configs' / 'mmpretrain' / 'rednet26.py')
    started = runner('mmpretrain', config, tmp_path, load_from=stated)
    started.load_or_resume()
    models = [started.model, classifier(), classifier()]
    for model, source in zip(models[1:], (address, stated), strict=True):
        load_checkpoint(model, source)
    for model in models:
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    backbone = RedNet(26, init_cfg=dict(type='Pretrained', checkpoint=stated, prefix='backbone.'))
    backbone.init_weights()
    assert torch.equal(backbone.layer1[0].bn3.weight, expected['backbone.layer1.0.bn3.weight'])
    out = tmp_path / 'rednet26.pth'
    assert main(['convert', stated, str(out)]) == 0
    assert 'pdparams.fc.weight -> state_dict.head.fc.weight\n' in capfd.readouterr().out
    written = torch.load(out, weights_only=True)['state_dict']
    assert all(torch.equal(written[name], value) for name, value in expected.items())
    # Downloaded once.
    assert server.asked == ['/RedNet26_pretrained.pdparams']


def assert_kept_nothing(cache):
    assert not cache.exists() or list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('absent.pdparams', ('404', 'give its path')),
        ('short.pdparams', ('damaged or incomplete', 'get it again')),
        ('short.pth', ('damaged or incomplete', 'get it again')),
        ('page.pdparams', ('a web page', 'URL')),
        ('page.pth', ('a web page', 'URL')),
        ('page.safetensors', ('a web page', 'URL')),
        ('whole.pdparams#sha256=0123456789', ('0123456789', 'SHA-256', 'again')),
        ('resnet50-0676ba61.pth', ('0676ba61', 'SHA-256', 'again')),
        ('whole.pdparams#sha256=123', ("'123'", '8 to 64')),
    ],
)
def test_a_download_is_whole_and_right_or_not_kept(name, words, server, cache, tmp_path):
    page = b'\n<!DOCTYPE html>\n<html><body>Please log in</body></html>'
    server.files.update({f'/page.{ending}': page for ending in ('pdparams', 'pth', 'safetensors')})
    server.files.update({f'/{file}': b'data' for file in ('whole.pdparams', 'resnet50-0676ba61.pth')})
    # One byte is missing. This is found without a header of the server.
    torch.save(dict(a=torch.ones(9)), tmp_path / 'short.pth')
    server.files['/short.pth'] = (tmp_path / 'short.pth').read_bytes()[:-1]
    server.files['/short.pdparams'] = pickle.dumps(dict(a=np.ones(9, np.float32)))[:-1]
    with pytest.raises((OSError, ValueError)) as error:
        load(f'{server.address}/{name}')
    for word in (name.partition('#')[0], *words):
        assert word in str(error.value) or '#sha256=123' in name
    assert_kept_nothing(cache)


def test_no_network(cache, monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with pytest.raises(OSError, match='127.0.0.1:1/a.pdparams could not be downloaded.*give its path'):
        load('http://127.0.0.1:1/a.pdparams')
    assert_kept_nothing(cache)


class FullDisk(io.FileIO):
    """A file on a disk without space."""

    def write(self, data):
        with open('/dev/full', 'wb', buffering=0) as file:
            return file.write(data)


def test_no_space_left_for_a_download(served, cache, monkeypatch):
    monkeypatch.setattr(torch.hub, 'open', lambda path, mode: FullDisk(path, mode), raising=False)
    with pytest.raises(OSError, match='No space left on device.*TORCH_HOME') as error:
        load(served[0])
    assert error.value.__cause__.errno == errno.ENOSPC and str(cache) in str(error.value)
    assert_kept_nothing(cache)


def test_files_of_one_name_are_told_apart(server, cache, tmp_path):
    for run in 'ab':
        save(dict(state_dict=dict(run=torch.tensor(ord(run))), meta={}), tmp_path / 'epoch_12.safetensors')
        server.files[f'/{run}/epoch_12.safetensors'] = (tmp_path / 'epoch_12.safetensors').read_bytes()
    for run in 'aabba':
        assert load(f'{server.address}/{run}/epoch_12.safetensors')['state_dict']['run'] == ord(run)
    assert server.asked == [f'/{run}/epoch_12.safetensors' for run in 'ab']


def test_a_cached_file_of_another_hash_is_replaced(served, cache):
    address, sha256 = served
    load(address)
    (cached,) = cache.iterdir()
    for source in (f'{address}#sha256={sha256}', address):
        cached.write_bytes(b'damaged by the disk')
        load(source)
        assert hashlib.sha256(cached.read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize('name', ('a.pdparams', 'a.pth', 'a.safetensors'))
def test_truncated_files_are_named_and_nothing_is_loaded(name, paddle_file, tmp_path):
    path = tmp_path / name
    if name == 'a.pdparams':
        path.write_bytes(paddle_file.read_bytes())
    else:
        save(load(paddle_file), path)
    os.truncate(path, path.stat().st_size // 2)
    model = RedNet(26, init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix='backbone.'))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf'{name} cannot be read.*incomplete.*again'):
        model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('name', ('a.pdparams', 'a.pth'))
def test_the_hash_of_a_file_is_checked(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b'data')
    with pytest.raises(ValueError, match=f'{name} was not loaded.*{hashlib.sha256(b"data").hexdigest()}.*00000000'):
        load(f'{path}#sha256=00000000')


def test_a_file_of_another_depth_is_refused(paddle_file):
    init_cfg = dict(type='Pretrained', checkpoint=str(paddle_file), prefix='backbone.')
    for options, words in (
        (dict(depth=38), 'layer1.1.conv1.weight(.|\n)*same depth'),
        (dict(depth=26, stem='conv'), 'stem.1.conv1(.|\n)*same depth, stem'),
    ):
        with pytest.raises(ValueError, match=f'RedNet26_pretrained.pdparams does not fit(.|\n)*{words}'):
            RedNet(**options, init_cfg=init_cfg).init_weights()


META = dict(dataset_meta=dict(classes=('disc', 'star'), palette=np.arange(6).reshape(2, 3)), epoch=12)


def test_safetensors_there_and_back(tmp_path, capsys):
    """Read by the package itself as well, so that other programs can."""
    safetensors = pytest.importorskip('safetensors.torch')
    weight = torch.rand(2, 3, 5, 4).permute(0, 3, 1, 2)
    state_dict = OrderedDict(a=weight, b=weight[0], c=torch.tensor(3))
    source, out = tmp_path / 'in.pth', tmp_path / 'out.safetensors'
    torch.save(dict(state_dict=state_dict, meta=META, optimizer=dict(lr=0.1)), source)
    assert main(['convert', str(source), str(out)]) == 0
    printed = capsys.readouterr().out
    assert 'left out' in printed and 'optimizer' in printed
    for loaded in (safetensors.load_file(out), load(out)['state_dict']):
        assert loaded.keys() == state_dict.keys()
        assert all(torch.equal(loaded[name], value) for name, value in state_dict.items())
    assert load(out)['meta'] == dict(
        dataset_meta=dict(classes=['disc', 'star'], palette=[[0, 1, 2], [3, 4, 5]]), epoch=12
    )


def test_safetensors_start_a_model(paddle_file, tmp_path):
    expected, path = load(paddle_file), tmp_path / 'a.safetensors'
    save(expected, path)
    model = classifier()
    load_checkpoint(model, str(path), strict=True)
    config = Config.fromfile(ROOT / 'configs' / 'mmpretrain' / 'rednet26.py')
    started = runner(
        'mmpretrain', config, tmp_path, load_from=f'{path}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}'
    )
    started.load_or_resume()
    backbone = RedNet(26, init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix='backbone'))
    backbone.init_weights()
    for filled, prefix in ((model, ''), (started.model, ''), (backbone, 'backbone.')):
        assert all(
            torch.equal(value, expected['state_dict'][prefix + name]) for name, value in filled.state_dict().items()
        )


def test_safetensors_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    path = tmp_path / 'a.safetensors'
    path.touch()
    with pytest.raises(ImportError, match='pip install safetensors'):
        load(path)
    with pytest.raises(ImportError, match='pip install safetensors'):
        save(dict(state_dict={}, meta={}), path)


def test_the_format_of_paddle_is_not_written(tmp_path):
    with pytest.raises(ValueError, match='a.pdparams has the ending of .* give .pth'):
        save(dict(state_dict={}, meta={}), tmp_path / 'a.pdparams')


@pytest.mark.parametrize('name', ('out.pth', 'out.safetensors'))
def test_a_full_disk_leaves_the_old_file(name, paddle_file, tmp_path):
    out = tmp_path / name
    out.write_text('old')

    said = run_python(
        'import resource, sys\n'
        'from mmrednet.__main__ import main\n'
        'sys.dont_write_bytecode = True\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n'
        f"assert main(['convert', {str(paddle_file)!r}, {str(out)!r}]) == 2",
        'import torch',
    )
    assert name in said and 'make room' in said and said.count('\n') == 1
    assert list(tmp_path.iterdir()) == [out] and out.read_text() == 'old'


@pytest.mark.parametrize('version', ('2.5.1', '2.9.1+cu130'))
def test_versions_of_torch_with_holes(version, server, cache, paddle_file, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, '__version__', TorchVersion(version))
    files._warn_once.cache_clear()
    with pytest.raises(ValueError, match=f'a.pth was not loaded: torch {version[:5]}.*CVE-2026-24747.*Upgrade torch'):
        load(f'{server.address}/a.pth')
    assert server.asked == []
    checkpoint = load(paddle_file)
    with pytest.warns(UserWarning, match='whom you trust') as warnings:
        for name in ('a.pth', 'b.pth', 'c.safetensors'):
            save(checkpoint, tmp_path / name)
            load(tmp_path / name)
    assert len([warning for warning in warnings if 'CVE' in str(warning.message)]) == 1


def test_this_version_of_torch_takes_a_checkpoint_from_an_address(server, cache, tmp_path):
    torch.save(dict(state_dict=dict(a=torch.ones(1))), tmp_path / 'a.pth')
    data = (tmp_path / 'a.pth').read_bytes()
    if torch.__version__ < '2.10':
        pytest.skip('refused, as tested above')
    # A plain name, one with the hash as in torch.hub, and one with a date.
    for name in ('a.pth', f'a-{hashlib.sha256(data).hexdigest()[:8]}.pth', 'a-20210304.pth'):
        server.files[f'/{name}'] = data
        assert load(f'{server.address}/{name}')['state_dict']['a'] == 1


class Whole(torch.nn.Linear):
    """A user's own model."""


@pytest.mark.parametrize('zipped', (True, False))
@pytest.mark.parametrize('wrap', (lambda model: model, lambda model: dict(model=model)))
def test_a_whole_model_as_checkpoint(tmp_path, wrap, zipped):
    path = tmp_path / 'model.pth'
    torch.save(wrap(Whole(2, 2)), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r'class [\w.]*test_files.Whole, not a state dict.*`model.state_dict\(\)`'
    ) as error:
        load(path)
    assert 'weights_only' not in str(error.value) and 'add_safe' not in str(error.value)
    assert str(error.value).isprintable() and error.value.__cause__ is not None


def foreign_files():
    """Files that people give as checkpoints, and words of the error for each."""
    zipped, safe, plain = io.BytesIO(), io.BytesIO(), dict(a=np.ones(3, np.float32))
    torch.save(dict(a=torch.ones(2)), zipped)
    safe.write(pytest.importorskip('safetensors.torch').save(dict(a=torch.ones(2))))
    with tempfile.TemporaryDirectory() as folder:
        torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(f'{folder}/a')
        script = Path(folder, 'a').read_bytes()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, 'w') as file:
        file.writestr('weights.bin', b'1' * 1000)
    return [
        (b'', ('pth', 'pdparams', 'safetensors'), 'it is empty'),
        (b'<!DOCTYPE html><html></html>', ('pth', 'pdparams', 'safetensors'), 'it is a web page'),
        (b'name: rednet\n' * 9, ('pth', 'pdparams', 'safetensors'), 'it is a text file'),
        (b'version https://git-lfs.github.com/spec/v1', ('pth', 'pdparams', 'safetensors'), '`git lfs pull`'),
        (zipped.getvalue(), ('pdparams', 'safetensors'), 'rename it to end in .pth'),
        (safe.getvalue(), ('pth', 'pdparams'), 'rename it to end in .safetensors'),
        (pickle.dumps(plain, 4), ('pth', 'safetensors'), 'end in .pdparams'),
        (script, ('pth',), 'a TorchScript program'),
        (archive.getvalue(), ('pth',), 'that torch.save did not write'),
    ]


def test_files_that_are_no_checkpoints_are_named_by_their_content(tmp_path):
    for content, endings, words in foreign_files():
        for ending in endings:
            path = tmp_path / f'a.{ending}'
            path.write_bytes(content)
            with pytest.raises(ValueError, match=f'a.{ending} cannot be read') as error:
                load(path)
            assert words in str(error.value) and str(error.value).isprintable()


def test_unsafe_pickles_get_no_advice_to_load_them(tmp_path):
    torch.save(dict(a=Call(os.system, f'touch {tmp_path / "mark"}')), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='a.pth.*system') as error:
        load(tmp_path / 'a.pth')
    assert 'weights_only=False' not in str(error.value) and not (tmp_path / 'mark').exists()


def test_public_names(cache, monkeypatch):
    asked = []
    monkeypatch.setattr(
        'mmrednet.checkpoint.files.fetch', lambda address, sha256, parse: asked.append(address) or parse(os.devnull)
    )
    for name in IMAGENET:
        with pytest.raises(ValueError, match='cannot be read'):
            load(f'mmrednet://{name}')
    assert asked == [
        f'https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/RedNet{depth}_pretrained.pdparams'
        for depth in (26, 38, 50, 101, 152)
    ]
    with pytest.raises(ValueError, match="'rednet34'.*rednet26.*rednet152"):
        load('mmrednet://rednet34')
    with pytest.raises(ValueError, match='SHA-256.*torchvision://resnet50'):
        load('torchvision://resnet50#sha256=01234567')
