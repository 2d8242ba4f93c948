"""Predictions and kernels of models as people train them: other names, other images, other configs."""

import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from helpers import ROOT, registry
from matplotlib import font_manager
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

from mmrednet.__main__ import main
from mmrednet.inference.names import find_names
from mmrednet.inference.photos import find_photos, to_picture
from mmrednet.inference.predictor import Predictor
from mmrednet.toolboxes import find_metainfo, quiet
from mmrednet.visualization.fonts import find_font
from mmrednet.visualization.pictures import draw_photos

CLASSES = ('cat', 'dog', 'hen')
CLS = f"""
_base_ = '{ROOT}/configs/mmpretrain/rednet26.py'
model = dict(
    backbone=dict(base_channels=16, stem_channels=32), head=dict(num_classes=3, in_channels=512, topk=(1,)))
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=48), dict(type='PackInputs')]))
"""
GRAY = """
_base_ = 'cls.py'
model = dict(backbone=dict(in_channels=1))
data_preprocessor = dict(mean=[114.0], std=[58.0], to_rgb=False)
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile', color_type='grayscale'), dict(type='Resize', scale=48), dict(type='PackInputs')]))
"""
SEG = f"""
_base_ = '{ROOT}/configs/mmseg/semantic_fpn_rednet50_invfpn_demo.py'
model = dict(backbone=dict(depth=26, base_channels=16, stem_channels=32), neck=dict(in_channels=[64, 128, 256, 512]))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Makes a folder with configs and a photograph, and restores mmengine's scopes afterwards."""
    before = dict(DefaultScope._instance_dict)
    monkeypatch.chdir(tmp_path)
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 7, 3)).astype(np.uint8), (80, 60))
    cv2.imwrite('t.png', image)
    for name, text in dict(cls=CLS, gray=GRAY, seg=SEG).items():
        Path(f'{name}.py').write_text(text)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


def save_checkpoint(name, meta=None, scope='mmpretrain', change=lambda state_dict: None):
    """Writes NAME.pth with random weights for NAME.py, and returns its path."""
    config = Config.fromfile(f'{name}.py')
    if 'data_preprocessor' in config:
        config.model.data_preprocessor = config.data_preprocessor
    torch.manual_seed(0)
    model = registry(scope).build(config.copy().model)
    with quiet():  # mmengine's log goes to a stream that an earlier test has closed
        model.init_weights()
    state_dict = model.state_dict()
    change(state_dict)
    torch.save(dict(state_dict=state_dict, meta=dict(cfg=config.pretty_text, **(meta or {}))), f'{name}.pth')
    return f'{name}.pth'


def predict(*args):
    """Runs the command, and returns its exit status and its results."""
    status = main(['predict', *args, '--json', 'results.json'])
    return status, json.loads(Path('results.json').read_text())


def notes(capsys):
    """Returns our own lines on stderr, without Python's warnings."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith('mmrednet ')]


def names(results):
    return sorted(row['what'] for row in results[0]['results'])


def test_names_are_those_of_the_training_data(capsys):
    """The preprocessor still has ImageNet's 1000 classes."""
    checkpoint = save_checkpoint('cls', dict(dataset_meta=dict(classes=CLASSES)))
    assert Config.fromfile('cls.py').data_preprocessor.num_classes == 1000
    status, results = predict('t.png', '--checkpoint', checkpoint)
    assert status == 0 and names(results) == [*CLASSES] and notes(capsys) == []


@pytest.mark.parametrize(
    ('setting', 'expected'),
    (
        ("metainfo=dict(classes='names.txt')", ['Katze', 'Hund', 'Huhn']),
        ("classes='names.txt'", ['Katze', 'Hund', 'Huhn']),
        ("classes=('a', 'b', 'c')", ['a', 'b', 'c']),
        ("metainfo=dict(classes=['a', 'b', 'c'], palette='random')", ['a', 'b', 'c']),
        ("metainfo=dict(classes=('a', 'b', 'c'), palette=((1, 2, 3), (4, 5, 6), (7, 8, 9)))", ['a', 'b', 'c']),
        ("metainfo=dict(classes=('a', 'b'))", ['0', '1', '2']),
    ),
)
def test_forms_of_names(setting, expected):
    Path('names.txt').write_text('Katze\nHund\nHuhn\n')
    Path('own.py').write_text(f"_base_ = 'cls.py'\ntest_dataloader = dict(dataset=dict({setting}))\n")
    predictor = Predictor('own.py', save_checkpoint('own'), 'cpu', draw=True)
    assert predictor.task.names.classes == expected and bool(predictor.notes) == (expected[0] == '0')
    (prediction,) = predictor(['t.png'])
    assert sorted(row['what'] for row in prediction.rows) == sorted(expected) and prediction.picture.shape[2] == 3
    if 'palette=(' in setting:
        assert predictor.task.names.palette == [(1, 2, 3), (4, 5, 6), (7, 8, 9)]


def test_a_single_class_is_a_text_of_several_letters():
    Path('one.py').write_text("_base_ = 'cls.py'\nmodel = dict(head=dict(num_classes=1))\n")
    checkpoint = save_checkpoint('one', dict(dataset_meta=dict(classes='scratch', palette='random')))
    assert names(predict('t.png', '--checkpoint', checkpoint)[1]) == ['scratch']
    head = torch.nn.Module()
    head.num_classes = 1
    Path('det.py').write_text(
        f"_base_ = '{ROOT}/configs/mmdet/faster_rcnn_rednet50_invfpn_demo.py'\n"
        "test_dataloader = dict(dataset=dict(metainfo=dict(classes='scratch', palette='random')))\n"
    )
    config = Config.fromfile('det.py')
    assert find_metainfo(config)['classes'] == 'scratch'
    assert find_names({}, config, head).classes == ['scratch']


@pytest.mark.parametrize('value', (float('nan'), float('inf')))
def test_weights_that_are_not_finite_are_refused(value, capsys):
    def change(state_dict):
        state_dict['head.fc.weight'][0, 0] = value
        state_dict[next(name for name in state_dict if name.endswith('running_var'))][0] = value

    checkpoint = save_checkpoint('cls', change=change)
    for command in (['predict'], ['visualize', '--config', 'cls.py', '--out', 'out']):
        assert main([*command, 't.png', '--checkpoint', checkpoint]) == 2
        line = notes(capsys)[-1]
        assert '2 parameters in cls.pth hold NaN or infinity' in line
        assert '.running_var' in line and 'head.fc.weight' in line
        assert 'earlier checkpoint' in line


@pytest.fixture
def own_font(tmp_path):
    """Adds a font that has glyphs for two Chinese characters, of different widths."""
    find_font.cache_clear()
    before = list(font_manager.fontManager.ttflist)

    def add():
        builder = FontBuilder(1000)
        characters = {ord(c): f'glyph{i}' for i, c in enumerate('猫犬鶏 :.,()0123456789Predicton')}
        builder.setupGlyphOrder(['.notdef', *characters.values()])
        builder.setupCharacterMap(characters)
        glyphs = {}
        for i, name in enumerate(['.notdef', *characters.values()]):
            pen = TTGlyphPen(None)
            pen.moveTo((0, 0))
            for point in ((0, 700), (100 + 250 * (i % 4), 700), (100 + 250 * (i % 4), 0)):
                pen.lineTo(point)
            pen.closePath()
            glyphs[name] = pen.glyph()
        builder.setupGlyf(glyphs)
        builder.setupHorizontalMetrics({name: (900, 0) for name in glyphs})
        builder.setupHorizontalHeader(ascent=800, descent=-200)
        builder.setupNameTable(dict(familyName='Two Characters', styleName='Regular'))
        builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
        builder.setupPost()
        builder.save(tmp_path / 'two.ttf')
        font_manager.fontManager.addfont(tmp_path / 'two.ttf')
        find_font.cache_clear()

    yield add
    font_manager.fontManager.ttflist[:] = before
    font_manager.fontManager._findfont_cached.cache_clear()
    find_font.cache_clear()


@pytest.mark.parametrize('scope', ('mmpretrain', 'mmseg'))
def test_names_in_chinese(scope, own_font, capsys, monkeypatch):
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda: [])
    name, extra = ('cls', ()) if scope == 'mmpretrain' else ('seg', ('one',))
    monkeypatch.setattr(
        font_manager.fontManager, 'ttflist', [f for f in font_manager.fontManager.ttflist if 'DejaVu' in f.name]
    )

    def prefer(state_dict):
        if scope == 'mmseg':  # the whole image is of the first of the three classes
            state_dict['decode_head.conv_seg.bias'] += torch.tensor([0.0, 9, 0, 0])

    def draw(classes):
        checkpoint = save_checkpoint(name, dict(dataset_meta=dict(classes=(*extra, *classes))), scope, prefer)
        assert predict('t.png', '--checkpoint', checkpoint, '--out', 'out')[0] == 0
        return Path('out/t_prediction.png').read_bytes(), notes(capsys)

    (first, lines), (second, _) = draw('猫犬鶏'), draw('犬猫鶏')
    assert first == second  # empty squares
    assert len(lines) == 1 and all(character in lines[0] for character in '猫犬鶏') and 'fonts-noto-cjk' in lines[0]
    own_font()
    (first, lines), (second, _) = draw('猫犬鶏'), draw('犬猫鶏')
    assert first != second and lines == []
    assert find_font('plain') == ('DejaVu Sans', '')


def test_its_own_pictures_are_no_photographs(capsys):
    checkpoint = save_checkpoint('cls')
    Path('pics').mkdir()
    Path('t.png').rename('pics/t.png')
    for run in range(3):
        status, results = predict('pics', 'pics/*.png', '--checkpoint', checkpoint, '--out', 'pics')
        assert status == 0 and [result['file'] for result in results] == ['pics/t.png']
        assert ('skipped 1 picture of earlier predictions' in capsys.readouterr().err) == (run > 0)
    assert sorted(path.name for path in Path('pics').iterdir()) == ['t.png', 't_prediction.png']
    assert find_photos(['pics/t_prediction.png']).files == ['pics/t_prediction.png']  # named by the user


def test_grey_models_get_grey_images():
    checkpoint = save_checkpoint('gray', dict(dataset_meta=dict(classes=CLASSES)))
    config = Config.fromfile('gray.py')
    config.model.data_preprocessor = config.data_preprocessor
    model = registry('mmpretrain').build(config.model).eval()
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    pixels = cv2.resize(cv2.imread('t.png', cv2.IMREAD_GRAYSCALE), (48, 48)).astype(np.float32)
    with torch.no_grad():
        scores = model(torch.from_numpy((pixels - 114) / 58)[None, None]).softmax(1)[0]
    status, results = predict('t.png', '--checkpoint', checkpoint, '--out', 'out')
    assert status == 0
    found = {row['label']: row['score'] for row in results[0]['results']}
    np.testing.assert_allclose([found[i] for i in range(3)], scores, 1e-4, 1e-5)
    assert main(['visualize', 't.png', '--config', 'gray.py', '--checkpoint', checkpoint, '--out', 'out']) == 0
    (figure,) = draw_photos(['t.png'], 'gray.py', checkpoint).values()
    image, heat_map = (axis.images[0].get_array() for axis in figure.axes[:2])
    grey = cv2.resize(cv2.imread('t.png', cv2.IMREAD_GRAYSCALE), (48, 48))
    assert np.array_equal(image, np.dstack([grey] * 3)) and heat_map.shape == (6, 6)


def test_a_wrong_number_of_channels_is_named(capsys):
    """The loading step reads three channels, and the model takes one."""
    Path('wrong.py').write_text(
        "_base_ = 'gray.py'\ntest_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'),"
        "dict(type='Resize', scale=48), dict(type='PackInputs')]))\n"
    )
    assert predict('t.png', '--checkpoint', save_checkpoint('wrong'))[0] == 2
    line = notes(capsys)[-1]
    assert 't.png (80x60x3) cannot be predicted' in line and 'have 1 channels, but got 3 channels' in line
    assert 'size may help' not in line


def test_four_channels_and_deep_images():
    """The pipeline's arguments decide: unchanged dtypes, alpha, and float TIFFs."""
    Path('four.py').write_text(
        "_base_ = 'cls.py'\nmodel = dict(backbone=dict(in_channels=4))\n"
        'data_preprocessor = dict(mean=[114.0] * 4, std=[58.0] * 4, to_rgb=False)\n'
        "test_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile', color_type='unchanged'),"
        "dict(type='Resize', scale=48), dict(type='PackInputs')]))\n"
    )
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 80, 4)).astype(np.uint8)).save('rgba.png')
    cv2.imwrite('deep.png', rng.integers(0, 65536, (60, 80, 4)).astype(np.uint16))
    status, results = predict('rgba.png', 'deep.png', '--checkpoint', save_checkpoint('four'), '--out', 'out')
    assert status == 0 and len(results) == 2 and len(list(Path('out').iterdir())) == 2
    Path('float.py').write_text(
        "_base_ = 'gray.py'\ntest_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile', "
        "color_type='unchanged', imdecode_backend='cv2'), dict(type='Resize', scale=48),"
        "dict(type='PackInputs')]))\n"
    )
    cv2.imwrite('float.tif', rng.random((60, 80)).astype(np.float32))
    assert predict('float.tif', '--checkpoint', save_checkpoint('float'), '--out', 'out')[0] == 0


@pytest.mark.parametrize(
    ('image', 'pixel'),
    (
        (np.array([[0, 200]], np.uint8), (200, 200, 200)),
        (np.array([[[1, 2, 3], [10, 20, 30]]], np.uint8), (30, 20, 10)),
        (np.array([[[1, 2, 3, 9], [10, 20, 30, 9]]], np.uint8), (30, 20, 10)),
        (np.array([[[0, 0], [7, 9]]], np.uint8), (7, 7, 7)),
        (np.array([[0, 1000]], np.uint16), (255, 255, 255)),
        (np.array([[[0.0, 0, 0], [10, 20, 30]]], np.float32), (30, 20, 10)),
        (np.array([[-1.0, 0.0]], np.float32), (255, 255, 255)),
        (np.array([[np.nan, 1.0]], np.float32), (255, 255, 255)),
    ),
)
def test_pictures_of_any_image(image, pixel):
    picture = to_picture(image)
    assert picture.shape == (1, 2, 3) and picture.dtype == np.uint8 and tuple(picture[0, 1]) == pixel


def test_names_with_control_characters_and_formulas(capsys):
    classes = ('a, b', '$x_1$ \x1b[31m', 'c\nd')
    checkpoint = save_checkpoint('cls', dict(dataset_meta=dict(classes=classes)))
    assert predict('t.png', '--checkpoint', checkpoint, '--out', 'out')[0] == 0
    out = capsys.readouterr().out
    assert '\x1b' not in out and r'$x_1$ \x1b[31m' in out and r'c\nd' in out and len(out.splitlines()) == 4


def test_a_photograph_that_cannot_be_predicted_does_not_stop_the_others(monkeypatch):
    predictor = Predictor('cls.py', save_checkpoint('cls'), 'cpu')
    cv2.imwrite('black.png', np.zeros((60, 80, 3), np.uint8))
    infer = predictor.task.infer

    def fail(image):
        if not image.any():
            raise RuntimeError('too dark')
        return infer(image)

    monkeypatch.setattr(predictor.task, 'infer', fail)
    first, second, third = predictor(['black.png', 'absent.png', 't.png'])
    assert 'too dark' in first.error and 'there is no file absent.png' in second.error and len(third.rows) == 3


def test_weights_that_give_nan_for_an_image_are_named():
    def change(state_dict):
        state_dict['head.fc.weight'].fill_(3e38)

    (prediction,) = Predictor('cls.py', save_checkpoint('cls', change=change), 'cpu')(['t.png'])
    assert 'its scores are NaN or infinite' in prediction.error and not prediction.rows


@pytest.mark.parametrize('command', ('predict', 'visualize', 'export'))
@pytest.mark.parametrize(('scope', 'remedy'), (('mmpose', 'MMPoseInferencer'), ('mmaction', 'MMAction2Inferencer')))
def test_configs_of_other_toolboxes(command, scope, remedy, capsys):
    Path('other.py').write_text(f"default_scope = '{scope}'\nmodel = dict(type='Any')\n")
    arguments = dict(
        predict=('t.png', '--config', 'other.py', '--checkpoint', save_checkpoint('cls')),
        visualize=('t.png', '--config', 'other.py', '--out', 'out'),
        export=('other.py', '--format', 'onnx', '--out', 'model.onnx'),
    )
    assert main([command, *arguments[command]]) == 2
    line = notes(capsys)[-1]
    assert f'other.py is a config of {scope}' in line and remedy in line and 'correct' not in line


@pytest.mark.parametrize(
    ('base', 'least', 'error'),
    (
        ('mmdet::solo/solo_r50_fpn_1x_coco.py', 0.0, ''),
        ('mmdet::solo/solo_r50_fpn_1x_coco.py', 1.0, ''),
        ('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', None, 'use mmdet.apis.DetInferencer'),
    ),
)
def test_models_without_boxes(base, least, error):
    """The masks of SOLO are drawn on an enlarged photograph, also where there are none."""
    Path('det.py').write_text(
        f"_base_ = '{base}'\n"
        'model = dict(backbone=dict(depth=18, init_cfg=None), neck=dict(in_channels=[64, 128, 256, 512]))\n'
        "test_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'),"
        "dict(type='Resize', scale=(96, 64), keep_ratio=True), dict(type='PackDetInputs', meta_keys=('img_id', "
        "'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))\n"
    )
    checkpoint = save_checkpoint('det', scope='mmdet')
    (prediction,) = Predictor('det.py', checkpoint, 'cpu', least, draw=True)(['t.png'])
    assert error in prediction.error and bool(prediction.error) == bool(error)
    assert error or prediction.picture.shape == (320, 427, 3)


def test_a_checkpoint_of_parameters_alone():
    torch.save(torch.load(save_checkpoint('cls'))['state_dict'], 'bare.pth')
    status, results = predict('t.png', '--config', 'cls.py', '--checkpoint', 'bare.pth')
    assert status == 0 and names(results) == ['0', '1', '2']


def test_the_predictor_gives_no_warnings():
    """The toolboxes' warnings are hidden. Ours is about fonts, and a font has all of these names."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        predictor = Predictor('cls.py', save_checkpoint('cls', dict(dataset_meta=dict(classes=CLASSES))), draw=True)
        before = len(caught)
        (prediction,) = predictor(['t.png'])
    assert prediction.picture is not None and caught[before:] == []
