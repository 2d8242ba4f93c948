"""Predictions of the command line compared with those of the toolboxes' own functions, and its errors."""

import hashlib
import json
import os
import pickle
import resource
import struct
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT, registry
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image

from mmrednet.__main__ import main
from mmrednet.checkpoint import IMAGENET, save
from mmrednet.inference.names import Names
from mmrednet.inference.tasks import Segmentation

CLASSES = ('disc', 'triangle', 'star')
CONFIGS = {
    'mmpretrain': 'mmpretrain/rednet26_demo.py',
    'mmdet': 'mmdet/faster_rcnn_rednet50_invfpn_demo.py',
    'mmseg': 'mmseg/semantic_fpn_rednet50_invfpn_demo.py',
}


@pytest.fixture(autouse=True, scope='module')
def default_scope_as_before():
    """Restores the default scope, which the inferencers set for the whole process."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


def noise(height, width, seed):
    """An image (H, W, 3) with large structures."""
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (6, 7, 3)).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The paths of a config and of a checkpoint for each toolbox, as mmengine saves it; the weights are random."""
    folder, paths = tmp_path_factory.mktemp('trained'), {}
    for scope, base in CONFIGS.items():
        config = folder / f'{scope}.py'
        config.write_text(f"_base_ = '{ROOT}/configs/{base}'\nmodel = dict(backbone=dict(depth=26))\n")
        parsed = Config.fromfile(config)
        torch.manual_seed(0)
        model = registry(scope).build(parsed.copy().model)
        model.init_weights()
        if scope == 'mmpretrain':
            model.head.fc.weight.data *= 200  # so that images differ in their scores
        classes = ('background', *CLASSES) if scope == 'mmseg' else CLASSES
        meta = dict(cfg=parsed.pretty_text, dataset_meta=dict(classes=classes))
        paths[scope] = config, folder / f'{scope}.pth'
        save(dict(state_dict=model.state_dict(), meta=meta), paths[scope][1])
    return paths


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with two photographs, in which the command is run."""
    monkeypatch.chdir(tmp_path)
    Path('trip').mkdir()
    for name, *image in (('a.png', 96, 80, 0), ('b.jpg', 64, 96, 1)):
        cv2.imwrite(f'trip/{name}', noise(*image))
    return tmp_path


def said(capfd):
    """Returns the lines of stdout and stderr, without those about the compiler."""
    out, err = capfd.readouterr()
    return out.splitlines(), [line for line in err.splitlines() if not line.startswith('mmrednet: compiling')]


def truth(scope, config, checkpoint, photo):
    if scope == 'mmpretrain':
        # The config's pipeline by hand: to 48x48, and ImageNet's mean and standard deviation.
        model = registry(scope).build(Config.fromfile(config).model).eval()
        model.load_state_dict(torch.load(checkpoint)['state_dict'])
        image = cv2.resize(cv2.imread(photo), (48, 48)).astype(np.float32)[..., ::-1]
        image = (image - (123.675, 116.28, 103.53)) / (58.395, 57.12, 57.375)
        with torch.no_grad():
            scores = model(torch.tensor(image).float().permute(2, 0, 1)[None], mode='tensor').softmax(1)[0].tolist()
        return [(label, CLASSES[label], scores[label]) for label in np.argsort(scores)[::-1].tolist()]
    if scope == 'mmdet':
        from mmdet.apis import inference_detector, init_detector

        found = inference_detector(init_detector(str(config), str(checkpoint), device='cpu'), photo).pred_instances
        rows = zip(found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist(), strict=True)
        return [(label, CLASSES[label], score, *box) for label, score, box in rows if score >= 0.15][:4]
    from mmseg.apis import inference_model, init_model

    found = inference_model(init_model(str(config), str(checkpoint), device='cpu'), photo).pred_sem_seg.data
    shares = torch.bincount(found.flatten(), minlength=4) / found.numel()
    order = shares.argsort(descending=True).tolist()
    return [(label, ('background', *CLASSES)[label], shares[label].item()) for label in order if shares[label]]


@pytest.mark.parametrize('scope', CONFIGS)
def test_predictions_are_the_toolbox_own(scope, trained, photos, capfd):
    config, checkpoint = trained[scope]
    options = ['--score-threshold', '0.15', '--top', '4'] if scope == 'mmdet' else []
    command = ['predict', 'trip', '--checkpoint', str(checkpoint), '--out', 'pictures', '--json', 'new/results.json']
    assert main([*command, *options]) == 0
    out, err = said(capfd)
    assert err == []
    results = json.loads(Path('new/results.json').read_text())
    assert [result['file'] for result in results] == ['trip/a.png', 'trip/b.jpg']
    lines = iter(out[1:])
    for result in results:
        expected = truth(scope, config, checkpoint, result['file'])
        rows = [(*list(row.values())[:3], *row.get('box', ())) for row in result['results']]
        assert len(rows) == len(expected) and len(rows) > 1
        for row, exact in zip(rows, expected, strict=True):
            assert row[:2] == exact[:2]
            np.testing.assert_allclose(row[2:], exact[2:], 1e-4, 1e-4)
            line = next(lines).split()
            assert line[0] == result['file'] and line[-1] == exact[1]
            shown = float(line[1].rstrip('%')) / (100 if scope == 'mmseg' else 1)
            assert shown == pytest.approx(exact[2], abs=1e-3)
            assert scope != 'mmdet' or np.abs(np.subtract(exact[3:], [int(n) for n in line[2:6]])).max() < 0.6
        name = Path(result['file'])
        picture, photo = cv2.imread(f'pictures/{name.stem}_prediction.png'), cv2.imread(str(name))
        # Small photographs are enlarged, and drawn in.
        assert min(picture.shape[:2]) == 320
        assert np.abs(cv2.resize(photo, picture.shape[1::-1]).astype(int) - picture).max() > 100
    assert next(lines, None) is None
    assert len(os.listdir('pictures')) == 2


def results(*arguments):
    assert main(['predict', *map(str, arguments), '--json', 'results.json']) == 0
    return json.loads(Path('results.json').read_text())


def test_files_folders_and_patterns(trained, photos):
    Path('trip/day').mkdir()
    for name in ('trip/day/a.png', 'trip/day/B.JPG', 'trip/day/[x] a.png'):
        Image.fromarray(noise(50, 50, 2)).save(name)
    Path('trip/notes.txt').write_text('no image')
    found = results(
        'trip',
        'trip/**/*.*g',
        'trip/day/[x] a.png',
        'trip/a.png',
        '--checkpoint',
        trained['mmpretrain'][1],
        '--out',
        'pictures',
    )
    files = [result['file'] for result in found]
    assert files == ['trip/a.png', 'trip/b.jpg', 'trip/day/[x] a.png', 'trip/day/a.png']
    # One name, two folders.
    assert sorted(os.listdir('pictures')) == [
        '[x] a_prediction.png',
        'a_prediction.png',
        'a_prediction_2.png',
        'b_prediction.png',
    ]


def test_kinds_of_images(trained, photos):
    """The toolboxes read them with OpenCV. The truth is the same image as plain 8-bit RGB."""
    image = Image.fromarray(noise(64, 96, 3))
    grey = image.convert('L')
    image.save('rgb.png')
    grey.convert('RGB').save('grey_rgb.png')
    image.convert('P').save('palette.png')
    image.convert('P').convert('RGB').save('palette_rgb.png')
    kinds = {'rgb.png': ['rgba.png', 'turned.png', 'cmyk.tif'], 'palette_rgb.png': ['palette.png', 'two.gif']}
    kinds['grey_rgb.png'] = ['grey.png', 'alpha.png', 'deep.png']
    image.convert('RGBA').save('rgba.png')
    image.convert('CMYK').save('cmyk.tif')
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    image.rotate(90, expand=True).save('turned.png', exif=exif)
    image.convert('P').save('two.gif', save_all=True, append_images=[image.rotate(90).convert('P')])
    grey.save('grey.png')
    image.convert('LA').save('alpha.png')
    cv2.imwrite('deep.png', np.asarray(grey).astype(np.uint16) * 257)
    names = [name for kind in kinds.items() for name in (kind[0], *kind[1])]
    found = results(*names, '--checkpoint', trained['mmpretrain'][1])
    scores = {result['file']: {row['what']: row['score'] for row in result['results']} for result in found}
    for plain, others in kinds.items():
        for name in others:
            assert scores[name] == pytest.approx(scores[plain], abs=2e-3), name
    assert scores['rgb.png'] != pytest.approx(scores['grey_rgb.png'], abs=4e-3)


def test_bad_photographs_do_not_stop_the_others(trained, photos, capfd):
    Path('text.jpg').write_text('no image')
    Path('empty.png').touch()
    Path('cut.jpg').write_bytes(Path('trip/b.jpg').read_bytes()[:300])
    Path('folder').mkdir()
    # A name that is no UTF-8.
    os.rename('trip/a.png', b'trip/a\xff.png')
    Path('trip/c.HEIC').touch()  # OpenCV reads none
    bad = ['text.jpg', 'absent.png', 'empty.png', 'folder', 'cut.jpg', 'no*.png']
    arguments = [*bad, 'trip', '--checkpoint', str(trained['mmpretrain'][1]), '--top', '1', '--json', 'results.json']
    assert main(['predict', *arguments]) == 2
    out, err = said(capfd)
    assert [line.split()[0] for line in out] == ['file', r'trip/a\udcff.png', 'trip/b.jpg']
    assert len(err) == len(bad) + 1
    for name in (*bad, 'trip/c.HEIC'):
        assert sum(line.startswith(f'mmrednet predict: error: {name} ') and 'give' in line for line in err) == 1
    assert len(json.loads(Path('results.json').read_text())) == 2


def test_photographs_that_cannot_be_read_or_resized_say_why(trained, photos, capfd):
    os.mkfifo('pipe.jpg')  # reading it would wait for ever
    cv2.imwrite('thin.png', np.zeros((1, 3000, 3), np.uint8))
    cv2.imwrite('deep.tif', np.zeros((8, 8, 3), np.float32))
    huge = bytearray(Path('trip/a.png').read_bytes())
    struct.pack_into('>II', huge, 16, 60000, 60000)  # the size that the header gives, and its checksum
    struct.pack_into('>I', huge, 29, zlib.crc32(huge[12:29]))
    Path('huge.png').write_bytes(huge)
    reasons = {
        'pipe.jpg': 'it is not a regular file',
        'thin.png': 'too narrow',
        'deep.tif': 'in no format that OpenCV reads',
        'huge.png': 'more pixels than OPENCV_IO_MAX_IMAGE_PIXELS allows',
    }
    assert main(['predict', *reasons, '--checkpoint', str(trained['mmdet'][1])]) == 2
    err = said(capfd)[1]  # and nothing that OpenCV prints
    assert len(err) == 4
    for line, (name, reason) in zip(err, reasons.items(), strict=True):
        assert line.startswith(f'mmrednet predict: error: {name} ') and reason in line


def test_a_full_disk_leaves_no_half_picture(trained, photos, capfd):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A larger file cannot be written; a picture of 320x384 pixels is.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, old[1]))
    try:
        status = main(['predict', 'trip', '--checkpoint', str(trained['mmpretrain'][1]), '--out', 'pictures'])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert status == 2
    (line,) = said(capfd)[1]
    assert 'pictures/a_prediction.png could not be written' in line and 'make room' in line
    assert os.listdir('pictures') == []


def test_public_weights_and_the_names_of_imagenet(photos, monkeypatch, capfd):
    """The weights that are in the cache are PaddleClas' RedNet-50's by name and layout."""
    from mmpretrain.datasets.categories import IMAGENET_CATEGORIES

    torch.manual_seed(0)
    model = registry('mmpretrain').build(Config.fromfile(ROOT / 'configs/mmpretrain/rednet50.py').model)
    torch.nn.init.zeros_(model.head.fc.weight)
    torch.nn.init.zeros_(model.head.fc.bias).data[207] = 3
    layout = (('backbone.', ''), ('head.', ''), ('running_mean', '_mean'), ('running_var', '_variance'))
    written = {}
    for name, value in model.state_dict().items():
        for old, new in layout:
            name = name.replace(old, new)
        if not name.endswith('num_batches_tracked'):
            written[name] = value.numpy().T.copy() if value.dim() == 2 else value.numpy()
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    monkeypatch.setenv('TORCH_HOME', str(photos / 'torch'))
    digits = hashlib.sha256(IMAGENET['rednet50'].address.encode()).hexdigest()[:16]
    cached = photos / f'torch/hub/checkpoints/{digits}-RedNet50_pretrained.pdparams'
    cached.parent.mkdir(parents=True)
    cached.write_bytes(pickle.dumps(written, 4))
    assert main(['predict', 'trip/a.png', '--top', '1']) == 0
    out, err = said(capfd)
    assert err == [] and out[1].split(maxsplit=2)[2] == IMAGENET_CATEGORIES[207] == 'golden retriever'
    assert float(out[1].split()[1]) == pytest.approx(np.exp(3) / (np.exp(3) + 999), abs=6e-4)
    # Without a network.
    cached.unlink()
    address = 'http://127.0.0.1:1/RedNet50_pretrained.pdparams'
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setitem(IMAGENET, 'rednet50', IMAGENET['rednet50']._replace(address=address))
    assert main(['predict', 'trip/a.png', '--model', 'rednet50_in1k', '--out', 'pictures']) == 2
    out, (line,) = said(capfd)
    assert out == [] and address in line and 'give its path' in line
    assert list(cached.parent.iterdir()) == [] and not Path('pictures').exists()


@pytest.mark.parametrize(
    ('classes', 'names'), ((None, CLASSES), (('d', 't', 's'), ('d', 't', 's')), (('a', 'b'), CLASSES))
)
def test_names_of_classes(classes, names, trained, photos, capfd):
    """They are the checkpoint's if it has one for each class, else the config's."""
    config, checkpoint = trained['mmdet']
    content = torch.load(checkpoint)
    content['meta'] = {} if classes is None else dict(dataset_meta=dict(classes=classes))
    save(content, Path('a.safetensors'))
    Path('wrapped.py').write_text(
        f"_base_ = '{config}'\n"
        "wrapped = dict(type='RepeatDataset', times=2, dataset={{_base_.test_dataloader.dataset}})\n"
        "test_dataloader = dict(dataset=dict(_delete_=True, type='ConcatDataset', datasets=[wrapped]))\n"
    )
    found = results('trip', '--config', 'wrapped.py', '--checkpoint', 'a.safetensors', '--score-threshold', 0)
    assert {row['what'] for result in found for row in result['results']} <= {*names}
    assert said(capfd)[1] == []


def test_numbers_stand_for_names_that_do_not_fit(trained, photos, capfd):
    content = torch.load(trained['mmpretrain'][1])
    content['meta']['dataset_meta']['classes'] = ('a', 'b')
    torch.save(content, 'a.pth')
    (found, _) = results('trip', '--checkpoint', 'a.pth')
    assert sorted(row['what'] for row in found['results']) == ['0', '1', '2']
    (note,) = said(capfd)[1]
    assert '3 classes' in note and 'the checkpoint has 2 names' in note and 'numbers stand for' in note


class Code:
    """Pickles as a call that leaves a mark."""

    def __reduce__(self):
        return os.system, ('touch mark',)


def cut(source, path):
    path.write_bytes(source.read_bytes()[: source.stat().st_size // 2])


@pytest.mark.parametrize(
    ('arguments', 'words'),
    (
        ('--model rednet51_in1k', 'rednet51_in1k mmpretrain/rednet50'),
        ('--model rednet26_demo', 'rednet26_demo public --checkpoint'),
        ('--config {cls_config}', 'mmpretrain.py public --checkpoint'),
        ('--config absent.py --checkpoint {cls}', 'no file absent.py `python -m mmrednet config`'),
        ('--config broken.py --checkpoint {cls}', 'broken.py SyntaxError correct'),
        ('--config scope.py --checkpoint {cls}', 'scope.py mmpose mmpretrain mmdet mmseg MMPoseInferencer'),
        ('--config nothing.py --checkpoint {cls}', 'nothing.py NoSuch correct'),
        ('--checkpoint absent.pth', 'absent.pth is not a file'),
        ('--checkpoint bare.pth', 'bare.pth holds no config --config --model'),
        ('--checkpoint cut.pth', 'cut.pth incomplete again'),
        ('--config {cls_config} --checkpoint cut.safetensors', 'cut.safetensors incomplete again'),
        ('--checkpoint code.pth', 'code.pth system save'),
        ('--model rednet26 --checkpoint code.pdparams', 'code.pdparams system do not use'),
        ('--checkpoint {cls}#sha256=00000000', 'SHA-256 00000000 again'),
        ('--model rednet38 --checkpoint {cls}', 'mmpretrain.pth missing layer1.1.conv1 --config'),
        ('--model rednet26 --checkpoint {cls}', 'mmpretrain.pth head.fc.weight (3, 2048) (1000, 2048) --config'),
        ('--config stem.py --checkpoint {cls}', 'mmpretrain.pth stem.1.conv2.conv.weight (18, (98, --config'),
        ('--config {cls_config} --checkpoint {seg}', 'mmseg.pth head.fc unexpected --config'),
        ('--checkpoint {seg} --score-threshold 0.5', '--score-threshold segmentation'),
        ('--checkpoint {cls} --device nowhere', 'device nowhere cpu'),
        ('--checkpoint {cls} --out /dev/null/pictures', '/dev/null/pictures/a_prediction.png another'),
        ('--checkpoint {cls} --json /dev/null/a.json', '/dev/null/a.json another'),
    ),
)
def test_errors_are_one_line_with_a_remedy(arguments, words, trained, photos, capfd):
    (config, cls), (_, seg) = trained['mmpretrain'], trained['mmseg']
    Path('broken.py').write_text('a = ')
    Path('scope.py').write_text("default_scope = 'mmpose'")
    Path('nothing.py').write_text(f"_base_ = '{config}'\nmodel = dict(backbone=dict(_delete_=True, type='NoSuch'))")
    Path('stem.py').write_text(f"_base_ = '{config}'\nmodel = dict(backbone=dict(stem_kernel_size=7))")
    content = torch.load(cls)
    save(dict(state_dict=content['state_dict'], meta={}), Path('bare.pth'))
    save(content, Path('whole.safetensors'))
    cut(cls, Path('cut.pth'))
    cut(Path('whole.safetensors'), Path('cut.safetensors'))
    torch.save(dict(a=Code()), 'code.pth')
    Path('code.pdparams').write_bytes(pickle.dumps(dict(a=Code())))
    before = sorted(photos.rglob('*'))
    assert main(['predict', 'trip', *arguments.format(cls=cls, cls_config=config, seg=seg).split()]) == 2
    line = said(capfd)[1]
    assert len(line) == 1 and line[0].startswith('mmrednet predict: error: ')
    for word in words.split(' '):
        assert word in line[0]
    assert sorted(photos.rglob('*')) == before


def test_a_config_from_an_address_is_not_run(trained, photos, monkeypatch, capfd):
    config, checkpoint = trained['mmpretrain']
    content = torch.load(checkpoint)
    content['meta']['cfg'] += "\nopen('mark', 'w')"
    save(content, Path('a.safetensors'))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    monkeypatch.setenv('TORCH_HOME', str(photos / 'torch'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')

    class Handler(SimpleHTTPRequestHandler):
        log_message = partial(lambda *_: None)

    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=photos)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}/a.safetensors'
        assert main(['predict', 'trip', '--checkpoint', address]) == 2
        assert 'can run code: give --config' in said(capfd)[1][-1] and not Path('mark').exists()
        assert main(['predict', 'trip', '--checkpoint', address, '--config', str(config)]) == 0
        server.shutdown()
    assert not Path('mark').exists()


def test_a_binary_segmentor_has_labels_of_floats():
    """mmseg returns such labels after a sigmoid."""
    task = Segmentation.__new__(Segmentation)
    task.names, task.top = Names(['back', 'front'], []), 5
    labels = torch.tensor([[[0.0, 1.0], [1.0, 1.0]]])
    sample = SegDataSample(pred_sem_seg=PixelData(data=labels))
    assert [(row['what'], row['label'], row['share']) for row in task.list_rows(sample)] == [
        ('front', 1, 0.75),
        ('back', 0, 0.25),
    ]
