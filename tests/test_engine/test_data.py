"""Wrong files of a data set stop a run before training, with an error that names the file, the entry and the remedy."""

import json
from functools import partial

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmengine.registry import init_default_scope
from mmpretrain.datasets import CustomDataset
from mmseg.datasets import BaseSegDataset
from PIL import Image
from test_engine.toy import Numbers, build_runner
from torch import nn

from mmrednet.engine import Runner
from mmrednet.engine.datasets import check_coco

NAMES = ('disc', 'triangle', 'star')
BOX = [8, 8, 20, 16]


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def annotations():
    """Four images of 64x48 with two objects each."""
    objects = [
        dict(id=n + 1, image_id=n // 2 + 1, category_id=n % 3 + 1, bbox=BOX, area=320, iscrowd=0) for n in range(8)
    ]
    images = [dict(id=n + 1, file_name=f'{n + 1}.png', width=64, height=48) for n in range(4)]
    return dict(
        images=images,
        annotations=objects,
        categories=[dict(id=n, name=name) for n, name in enumerate(NAMES, 1)],
    )


def edit(part, index=0, remove=None, **values):
    """Returns a function that changes an entry of a list, or all with ``index=None``."""

    def change(content):
        for entry in content[part] if index is None else [content[part][index]]:
            entry.update(values)
            entry.pop(remove, None)

    return change


# What the error must contain: the place, what is wrong, and the remedy.
WRONG = {
    'no categories': (lambda content: content.pop('categories'), ('categories must be a list', 'add it')),
    'no annotations': (lambda content: content.update(annotations=[]), ('annotations must be a list', 'add it')),
    'a number as annotation': (lambda content: content.update(annotations=[1]), ('annotations[0] has no id', 'add it')),
    'no file_name': (edit('images', remove='file_name'), ('images[0] has no file_name', 'add it')),
    'no bbox': (edit('annotations', 2, remove='bbox'), ('annotations[2] has no bbox', 'add it')),
    'no area': (edit('annotations', None, remove='area'), ('annotations[0] has no area', 'add it')),
    'width as text': (edit('images', width='64'), ("images[0], with the id 1, has width='64'", 'must be a number')),
    'no number as height': (
        edit('images', height=None),
        ('images[0], with the id 1, has height=None', 'must be a number'),
    ),
    'bbox as text': (
        edit('annotations', bbox=['8', '8', '20', '16']),
        ("annotations[0], with the id 1, has bbox=['8'", 'pixels'),
    ),
    'bbox of three': (
        edit('annotations', bbox=[8, 8, 20]),
        ('annotations[0], with the id 1, has bbox=[8, 8, 20]', 'four'),
    ),
    'bbox of NaN': (edit('annotations', bbox=[8, 8, float('nan'), 16]), ('annotations[0]', 'finite')),
    'another category': (edit('annotations', 3, category_id=9), ('id 4 has the category_id 9', '[1, 2, 3]')),
    'a category as text': (edit('annotations', category_id='1'), ("category_id '1'", '[1, 2, 3]', 'correct')),
    'one id twice': (edit('annotations', 4, id=1), ('annotations has several entries with the ids [1]', 'own id')),
    'one image id twice': (edit('images', 1, id=1), ('images has several entries with the ids [1]', 'own id')),
    'image ids as text': (edit('annotations', None, image_id='1'), ('no object', '8 have an image_id that no image')),
    'all boxes outside': (edit('annotations', None, bbox=[90, 90, 9, 9]), ('no object', '8', 'outside the image')),
    'relative boxes': (
        edit('annotations', None, bbox=[0.1, 0.1, 0.5, 0.3]),
        ('no object', 'than 1 pixel', 'x, y'),
    ),
    'only crowds': (edit('annotations', None, iscrowd=1), ('no object', '8 are crowds')),
    'corners': (edit('annotations', None, bbox=[30, 30, 50, 40]), ('8 of 8 bboxes end outside', 'x, y, width')),
    'sizes of -1': (edit('images', None, width=-1, height=-1), ('no object', 'outside the image')),
    'other names': (edit('categories', None, name='thing'), ('metainfo.classes has none', "['thing', 'thing'")),
}
LEFT_OUT = {
    'have an image_id that no image has': edit('annotations', 4, image_id=77),
    'have a bbox that is empty or outside the image': edit('annotations', 4, bbox=[30, 30, -10, 8]),
    'have a bbox or an area of less than 1 pixel': edit('annotations', 4, area=0),
}


def check(content, **options):
    return check_coco('a.json', json.dumps(content).encode(), NAMES, **options)


@pytest.mark.parametrize('name', WRONG)
def test_a_wrong_entry_is_named(name):
    change, texts = WRONG[name]
    change(content := annotations())
    with pytest.raises(ValueError, match=r'a\.json') as error:
        check(content)
    assert all(text in str(error.value) for text in texts), error.value


@pytest.mark.parametrize('reason', LEFT_OUT)
def test_annotations_that_mmdet_leaves_out_are_counted(reason, tmp_path):
    content = annotations()
    assert check(content) == ''
    LEFT_OUT[reason](content)
    assert check(content).endswith(f'1 {reason} (such as that with the id 5)')
    # mmdet itself has one object less.
    (tmp_path / 'a.json').write_text(json.dumps(content))
    dataset = coco(tmp_path, pipeline=[])
    assert sum(len(dataset.get_data_info(i)['instances']) for i in range(4)) == 7


@pytest.mark.parametrize('content', ([1], dict(metainfo={}, data_list=[]), dict(annotations=[dict(caption='a')])))
def test_other_formats_pass(content):
    assert check(content) == ''


def test_ids_from_zero_crowds_and_unused_categories_pass():
    content = annotations()
    for part in content.values():
        for entry in part:
            entry.update({key: value - 1 for key, value in entry.items() if key.endswith('id')})
    content['annotations'][0]['iscrowd'] = 1
    assert check_coco('a.json', json.dumps(content).encode(), ('disc', 'tree')) == ''


def test_the_evaluation_needs_iscrowd():
    edit('annotations', 1, remove='iscrowd')(content := annotations())
    assert check(content) == ''
    with pytest.raises(ValueError, match=r'annotations\[1\] has no iscrowd'):
        check(content, training=False)


def test_a_file_without_objects_can_be_tested():
    content = annotations()
    del content['annotations']
    assert check(content, training=False) == ''


# Data sets that cannot be built.


def loader(**dataset):
    return dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler'), dataset=dataset)


FILES = {
    'a byte order mark': (lambda text: b'\xef\xbb\xbf' + text, 'is not JSON in UTF-8 .*byte order mark'),
    'half of it': (lambda text: text[: len(text) // 2], 'is not JSON in UTF-8 .*get it again'),
    'empty': (lambda text: b'', 'is not JSON in UTF-8'),
    'no area': (lambda text: text.replace(b'"area"', b'"size"'), r'annotations\[0\] has no area'),
}


@pytest.mark.parametrize('name', FILES)
def test_a_file_that_mmdet_cannot_read(name, tmp_path):
    change, message = FILES[name]
    (tmp_path / 'a.json').write_bytes(change(json.dumps(annotations()).encode()))
    options = dict(type='CocoDataset', data_root=str(tmp_path), ann_file='a.json', metainfo=dict(classes=NAMES))
    with pytest.raises(ValueError, match=f'{tmp_path}/a.json.*{message}'):
        Runner.build_dataloader(loader(type='RepeatDataset', times=2, dataset=dict(options, pipeline=[])))


def test_a_coco_file_without_the_classes(tmp_path):
    (tmp_path / 'a.json').write_text(json.dumps(annotations()))
    filtering = dict(filter_cfg=dict(filter_empty_gt=True), pipeline=[], data_prefix=dict(img=''))
    for metainfo in ({}, dict(metainfo=dict(classes=('cat', 'dog')))):
        with pytest.raises(ValueError, match=r"none of the categories .* write metainfo=dict\(classes=\('disc', 'tri"):
            Runner.build_dataloader(
                loader(type='CocoDataset', ann_file=str(tmp_path / 'a.json'), **filtering, **metainfo)
            )


def test_other_data_sets_that_cannot_be_built(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.jpg'), np.zeros((8, 8, 3), np.uint8))
    init_default_scope('mmseg')
    options = dict(type='BaseSegDataset', data_root=str(tmp_path), data_prefix=dict(img_path='.'), pipeline=[])
    with pytest.raises(ValueError, match=r"no file or annotation matches.* img_suffix='\.png'"):
        Runner.build_dataloader(loader(**options, img_suffix='.png'))
    init_default_scope('mmpretrain')
    (tmp_path / 'list.txt').write_text('a.jpg cat\n')
    options = dict(type='CustomDataset', data_root=str(tmp_path), ann_file='list.txt', pipeline=[])
    with pytest.raises(ValueError, match="invalid literal.*'cat'.* ann_file='list.txt'"):
        Runner.build_dataloader(loader(**options))
    with pytest.raises(FileNotFoundError, match='data_root of the data set CustomDataset'):
        Runner.build_dataloader(loader(**{**options, 'data_root': str(tmp_path / 'none')}))


# The hook.

LOAD = (dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'))


def coco(folder, pipeline=LOAD, **options):
    options = dict(metainfo=dict(classes=NAMES), pipeline=[*pipeline], serialize_data=False, **options)
    return CocoDataset(ann_file=str(folder / 'a.json'), data_prefix=dict(img=str(folder / 'images')), **options)


def masks(folder, classes=('ground', 'tree', 'house'), **options):
    init_default_scope('mmseg')
    options = dict(metainfo=dict(classes=classes), pipeline=[*LOAD], serialize_data=False, **options)
    prefix = dict(img_path=str(folder / 'images'), seg_map_path=str(folder / 'masks'))
    return BaseSegDataset(data_prefix=prefix, img_suffix='.png', **options)


@pytest.fixture
def folder(tmp_path):
    """Four images, with boxes and with masks."""
    (tmp_path / 'masks').mkdir()
    (tmp_path / 'images').mkdir()
    (tmp_path / 'a.json').write_text(json.dumps(annotations()))
    mask = np.zeros((48, 64), np.uint8)
    mask[8:24, 8:28], mask[30:40, 8:28] = 1, 2
    for n in range(1, 5):
        cv2.imwrite(str(tmp_path / 'images' / f'{n}.png'), np.full((48, 64, 3), 99, np.uint8))
        Image.fromarray(mask).save(tmp_path / 'masks' / f'{n}.png')
    return tmp_path


def run_hooks(folder, dataset, **options):
    runner = build_runner(folder / 'run', train=dataset, **options)
    assert runner.train_loop
    runner.call_hook('before_run')


def test_right_data_passes(folder, caplog):
    for dataset in (coco(folder), masks(folder), masks(folder, ('one', 'two'), reduce_zero_label=True), Numbers()):
        run_hooks(folder, dataset)
    palette = Image.open(folder / 'masks' / '1.png').convert('P')
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    palette.save(folder / 'masks' / '1.png')
    run_hooks(folder, masks(folder))
    assert not caplog.records


def test_the_hook_checks_annotations_and_can_be_left_out(folder):
    content = annotations()
    edit('annotations', None, bbox=[30, 30, 50, 40])(content)
    (folder / 'a.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'train_dataloader.dataset: .*8 of 8 bboxes .*default_hooks.check_data=None'):
        run_hooks(folder, coco(folder))
    run_hooks(folder, coco(folder), hooks=dict(check_data=None))


def test_the_hook_warns_of_annotations_that_are_left_out(folder, capfd):
    content = annotations()
    edit('annotations', 4, area=0)(content)
    (folder / 'a.json').write_text(json.dumps(content))
    run_hooks(folder, coco(folder))
    assert 'mmdet leaves out these annotations: 1 have a bbox or an area of less than' in ''.join(capfd.readouterr())


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.open(path).save(path, exif=exif)


IMAGES = {
    'missing': (lambda path: path.unlink(), 'there is no file .*3.png: correct the path'),
    'empty': (lambda path: path.write_bytes(b''), '3.png cannot be read as an image .*empty or damaged'),
    'truncated': (lambda path: path.write_bytes(path.read_bytes()[:60]), '3.png cannot be read as an image'),
    'another size': (
        lambda path: cv2.imwrite(str(path), np.zeros((64, 64, 3), np.uint8)),
        r'height and width are \[64, 64\], but \[48, 64\] in the annotation file: correct',
    ),
    'turned': (turned, r'are \[64, 48\], but \[48, 64\] .*color_type="color_ignore_orientation"'),
}


@pytest.mark.parametrize('name', IMAGES)
def test_wrong_images(name, folder):
    change, message = IMAGES[name]
    change(folder / 'images' / '3.png')
    with pytest.raises(ValueError, match=f'train_dataloader.dataset, sample 2 .*{message}'):
        run_hooks(folder, coco(folder))
    if name == 'turned':
        as_advised = dict(type='LoadImageFromFile', color_type='color_ignore_orientation')
        run_hooks(folder, coco(folder, (as_advised, LOAD[1])))


def test_an_object_without_a_mask(folder):
    pipeline = (LOAD[0], dict(type='LoadAnnotations', with_mask=True))
    with pytest.raises(ValueError, match='has no segmentation: add it, or set with_mask=False'):
        run_hooks(folder, coco(folder, pipeline))


MASKS = {
    'colours': (lambda mask: np.dstack([mask] * 3), '3.png has 3 channels: write the labels'),
    'grey with alpha': (lambda mask: np.dstack([mask, mask]), 'has 2 channels'),
    'other values': (lambda mask: mask + 5, r'values \[5, 6, 7\], but the labels of the 3 classes are 0 to 2: correct'),
    'another size': (lambda mask: mask[::2, ::2], r'are \(24, 32\) in the mask .*3.png and \(48, 64\) in the image'),
}


def test_a_missing_mask(folder):
    (folder / 'masks' / '3.png').unlink()
    with pytest.raises(
        ValueError, match='sample 2 .*there is no file .*masks/3.png: correct data_prefix or seg_map_suf'
    ):
        run_hooks(folder, masks(folder))


@pytest.mark.parametrize('name', MASKS)
def test_wrong_masks(name, folder):
    change, message = MASKS[name]
    path = folder / 'masks' / '3.png'
    Image.fromarray(np.ascontiguousarray(change(np.array(Image.open(path))))).save(path)
    with pytest.raises(ValueError, match=f'sample 2 .*{message}'):
        run_hooks(folder, masks(folder))


def test_masks_of_black_and_white(folder):
    """mmseg ignores the value 255, so that there is one class to learn."""
    for path in (folder / 'masks').iterdir():
        Image.fromarray(np.where(np.array(Image.open(path)) == 1, np.uint8(255), np.uint8(0))).save(path)
    with pytest.raises(ValueError, match=r'only the values \[0, 255\], and 255 is ignored.*write the labels 0, 1'):
        run_hooks(folder, masks(folder, ('ground', 'tree')))


def test_a_damaged_file_in_a_folder_of_a_class(tmp_path):
    init_default_scope('mmpretrain')
    (tmp_path / 'cat').mkdir()
    for name in ('a.png', 'b.png'):
        (tmp_path / 'cat' / name).touch()
    dataset = CustomDataset(data_prefix=str(tmp_path), pipeline=[LOAD[0]])
    with pytest.raises(ValueError, match=r'sample 0 .*cat/a.png cannot be read'):
        run_hooks(tmp_path, dataset)


@pytest.mark.parametrize('size', (2, 4))
def test_another_number_of_classes_than_the_heads_have(size, tmp_path):
    check_numbers = partial(build_runner, tmp_path, train=Numbers())
    for num_classes in (3, size):
        runner = check_numbers()
        assert runner.train_loop
        runner.model.head = nn.Linear(1, 1)
        runner.model.head.num_classes = num_classes
        if num_classes == 3:
            runner.call_hook('before_run')
    with pytest.raises(ValueError, match=f"of classes is 3, .*'hen'.*num_classes of the model is {size}: correct"):
        runner.call_hook('before_run')


def test_a_class_in_another_spelling_that_moves_labels(tmp_path):
    runner = build_runner(tmp_path, train=Numbers(('disc', 'star')), val=Numbers(('Star', 'disc')), scores=(1,))
    assert runner.train_loop and runner.val_loop
    with pytest.raises(ValueError, match='different labels'):
        runner.call_hook('before_run')
