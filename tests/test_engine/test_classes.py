"""A run stops before training if class names do not belong to the labels, and right data sets pass."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset, CrowdHumanDataset, MultiImageMixDataset, Objects365V1Dataset, VOCDataset
from mmengine.dataset import ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.registry import init_default_scope
from mmpretrain.datasets import CIFAR10, CustomDataset
from mmseg.datasets import CityscapesDataset
from test_engine.toy import Numbers, build_runner
from torch.utils.data import Subset

from mmrednet.engine.hooks import classes as module

NAMES = ('disc', 'triangle', 'star')


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def make_coco(folder, classes=NAMES, categories=NAMES, kind=CocoDataset, extra=(), **options):
    """Returns a data set of one image with one object of each category; the ids of the categories are 10, 20, ..."""
    numbers = range(10, 10 * len(categories) + 1, 10)
    file = folder / f'{len([*folder.iterdir()])}.json'
    content = dict(
        categories=[dict(id=number, name=name) for number, name in zip(numbers, categories, strict=True)],
        images=[dict(id=1, file_name='a.png', width=8, height=8)],
        annotations=[
            dict(id=number, image_id=1, category_id=number, bbox=[1, 1, 4, 4], area=16, iscrowd=0, **dict(extra))
            for number in numbers
        ],
    )
    file.write_text(json.dumps(content))
    metainfo = None if classes is None else dict(classes=classes)
    return kind(
        ann_file=str(file), metainfo=metainfo, data_prefix=dict(img=''), pipeline=[], serialize_data=False, **options
    )


def make_folders(folder, *names, **options):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / 'a.png').touch()
    return CustomDataset(data_prefix=str(folder), **options)


def check(folder, train=None, val=None):
    """Builds what a run builds before its hooks, and calls them."""
    runner = build_runner(folder / 'run', train=train, val=val, scores=(1,), hooks=dict(check_data=None))
    assert len(runner.train_loop.dataloader.dataset) and runner.val_loop
    runner.call_hook('before_run')


WRAPPERS = (
    lambda dataset: dataset,
    lambda dataset: ConcatDataset([dataset, dataset]),
    lambda dataset: RepeatDataset(dataset, 2),
    lambda dataset: ClassBalancedDataset(dataset, 1e-3),
    lambda dataset: MultiImageMixDataset(dataset, []),
    lambda dataset: Subset(ConcatDataset([dataset, dataset]), [1]),
)

# The classes of metainfo, and the categories of the file in its order.
RIGHT = {
    'all': (NAMES, NAMES),
    'a list': ([*NAMES], NAMES),
    'some of them': (('disc', 'star'), NAMES),
    'the first of them': (NAMES, ('disc', 'triangle')),
    'one that is also in another data set': (('person', 'car'), ('person', 'face')),
    'one': (('disc',), ('disc',)),
    'characters': (('a', 'B'), ('A', 'a', 'b', 'B')),
    'Chinese': (('猫', '狗'), ('猫', '狗')),
}
WRONG = {
    'another order': (('star', 'disc', 'triangle'), NAMES),
    'another order of some': (('star', 'disc'), NAMES),
    'the first misspelt': (('Disc', 'triangle', 'star'), NAMES),
    'the last misspelt': (('disc', 'triangle', 'Star'), NAMES),
    'an underscore': (('disc', 'red_star'), ('disc', 'red star')),
    'one not in the file': (NAMES, ('disc', 'star')),
    'none in the file': (None, NAMES),  # the 80 classes of COCO
    'a category twice': (('disc', 'star'), ('disc', 'disc', 'star')),
}


@pytest.mark.parametrize('name', RIGHT)
def test_a_coco_file_with_matching_classes_passes(name, tmp_path):
    classes, categories = RIGHT[name]
    dataset = make_coco(tmp_path, classes, categories)
    check(tmp_path, dataset, dataset)
    # The independent check: the label of each object leads to its category's name.
    objects = dataset.get_data_info(0)['instances']
    labelled = [name for name in categories if name in dataset.metainfo['classes']]
    assert [dataset.metainfo['classes'][item['bbox_label']] for item in objects] == labelled


@pytest.mark.parametrize('name', WRONG)
def test_a_coco_file_with_other_classes_is_refused(name, tmp_path):
    classes, categories = WRONG[name]
    dataset = make_coco(tmp_path, classes, categories)
    with pytest.raises(ValueError, match=r'train_dataloader.dataset: .*Write metainfo=dict\(classes=') as error:
        check(tmp_path, dataset)
    assert str(list(dataset.metainfo['classes'])) in str(error.value)
    if name == 'a category twice':
        assert "several categories named ['disc']" in str(error.value)
    elif name != 'one not in the file':
        # The metainfo that the error suggests passes.
        advice = eval(str(error.value).split('Write metainfo=')[1].split(' in each')[0])
        assert len(advice['classes']) == min(len(dataset.metainfo['classes']), len(categories))
        check(tmp_path, make_coco(tmp_path, advice['classes'], categories))


def test_both_lists_are_shown(tmp_path):
    with pytest.raises(ValueError) as error:
        check(tmp_path, make_coco(tmp_path, ('star', 'disc', 'triangle')))
    for text in ("['disc', 'triangle', 'star']", "['star', 'disc', 'triangle']", "('disc', 'triangle', 'star')"):
        assert text in str(error.value)


@pytest.mark.parametrize('wrap', WRAPPERS)
def test_wrapped_data_sets_are_checked(wrap, tmp_path):
    check(tmp_path, wrap(make_coco(tmp_path)))
    with pytest.raises(ValueError, match='the labels do not match the class names'):
        check(tmp_path, wrap(make_coco(tmp_path, ('star', 'disc', 'triangle'))))


def test_the_data_set_for_validation_is_checked(tmp_path):
    with pytest.raises(ValueError, match='val_dataloader.dataset: the labels do not match'):
        check(tmp_path, make_coco(tmp_path), make_coco(tmp_path, ('star', 'disc', 'triangle')))


def test_the_order_of_the_labels_counts_not_that_of_the_file(tmp_path):
    """mmdet sorts the categories of Objects365 by their ids."""
    dataset = make_coco(tmp_path, kind=Objects365V1Dataset)
    content = json.loads((tmp_path / '0.json').read_text())
    content['categories'].reverse()
    (tmp_path / '0.json').write_text(json.dumps(content))
    dataset = Objects365V1Dataset(
        ann_file=str(tmp_path / '0.json'), metainfo=dict(classes=NAMES), data_prefix=dict(img=''), pipeline=[]
    )
    assert dataset.cat_ids == [10, 20, 30]
    check(tmp_path, dataset)


def test_a_file_in_which_the_word_categories_occurs_twice(tmp_path):
    check(tmp_path, make_coco(tmp_path, extra=dict(categories=['a'])))
    with pytest.raises(ValueError, match='the labels do not match'):
        check(tmp_path, make_coco(tmp_path, ('star', 'disc'), extra=dict(categories=['a'])))


def test_a_file_is_read_once_without_its_annotations(tmp_path, monkeypatch):
    dataset = make_coco(tmp_path)
    files = []
    monkeypatch.setattr(module, 'get', lambda file, backend_args: files.append(file) or open(file, 'rb').read())
    monkeypatch.setattr(json, 'loads', None)
    check(tmp_path, ConcatDataset([dataset, dataset]), dataset)
    assert files == [dataset.ann_file]


def test_numbers_of_all_categories(tmp_path):
    """LVIS numbers all categories of its file, and the list of names has some other spellings."""
    file = make_coco(tmp_path, categories=('Disc', 'triangle', 'star')).ann_file
    check(tmp_path, Numbers(NAMES, cat_ids=[10, 20, 30], ann_file=file))
    with pytest.raises(ValueError, match='the labels do not match'):
        check(tmp_path, Numbers(('triangle', 'star'), cat_ids=[10, 20, 30], ann_file=file))


def test_a_string_of_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"string 'disc'.*each letter is a name.*classes=\('disc',\)"):
        check(tmp_path, make_coco(tmp_path, 'disc'))


def test_a_file_of_classes_passes(tmp_path):
    (tmp_path / 'names.txt').write_text('\n'.join(NAMES))
    check(tmp_path, make_coco(tmp_path, str(tmp_path / 'names.txt')))


def test_labels_that_belong_to_a_text_pass(tmp_path):
    check(tmp_path, make_coco(tmp_path, ('star', 'disc', 'triangle'), return_classes=True))


@pytest.mark.parametrize(
    'attributes',
    (
        dict(cat_ids=[1], ann_file='absent.json'),
        dict(cat_ids=[1], ann_file=__file__),
        dict(cat_ids=[1], ann_file=None),
        dict(cat_ids={1: 0}, ann_file=__file__),
        dict(metainfo=None),
        dict(metainfo={}),
        dict(metainfo=dict(classes=None)),
        dict(dataset='a path'),
        dict(datasets=()),
    ),
)
def test_unknown_data_sets_pass(attributes, tmp_path):
    check(tmp_path, Numbers(**attributes), Numbers(**attributes))
    dataset = Numbers()
    del dataset.metainfo
    check(tmp_path, dataset)


def test_data_sets_of_other_formats_pass(tmp_path):
    (tmp_path / 'VOC2007' / 'Annotations').mkdir(parents=True)
    size = '<size><width>8</width><height>8</height></size>'
    (tmp_path / 'VOC2007' / 'Annotations' / 'a.xml').write_text(f'<annotation>{size}</annotation>')
    (tmp_path / 'images.txt').write_text('a')
    data = dict(data_root=str(tmp_path), data_prefix=dict(sub_data_root='VOC2007'))
    voc = VOCDataset(ann_file='images.txt', **data)
    line = dict(ID='a', gtboxes=[])
    (tmp_path / 'val.odgt').write_text(json.dumps(line))
    (tmp_path / 'id_hw_val.json').write_text(json.dumps(dict(a=(8, 8))))
    crowd = CrowdHumanDataset(f'{tmp_path}/', 'val.odgt', data_prefix=dict(img=''))
    cifar = CIFAR10(data_root=str(tmp_path), test_mode=True, lazy_init=True, download=False)
    (tmp_path / 'b_leftImg8bit.png').touch()
    city = CityscapesDataset(data_prefix=dict(img_path=str(tmp_path)))
    for dataset in (voc, crowd, cifar, city):
        runner = build_runner(tmp_path / 'run', scores=(1,))
        runner.train_loop.dataloader = runner.val_loop.dataloader = SimpleNamespace(dataset=dataset)
        runner.call_hook('before_run')


# Folders.


def test_folders_with_matching_classes_pass(tmp_path):
    train = make_folders(tmp_path / 'train', 'cat', 'dog')
    check(tmp_path, train, make_folders(tmp_path / 'val', 'cat', 'dog', classes=['cat', 'dog']))


def test_folders_whose_names_are_codes_pass(tmp_path):
    check(tmp_path, make_folders(tmp_path / 'data', 'n01440764', 'n01443537', classes=['tench', 'goldfish']))


def test_folders_with_classes_in_another_order_are_refused(tmp_path):
    dataset = make_folders(tmp_path / 'data', 'cat', 'dog', classes=['dog', 'cat'])
    with pytest.raises(ValueError, match=r"\['cat', 'dog'\], but .*\['dog', 'cat'\].*classes=\('cat', 'dog'\)"):
        check(tmp_path, dataset)


def test_a_class_without_a_folder_for_validation_is_refused(tmp_path):
    train = make_folders(tmp_path / 'train', 'cat', 'dog', 'hen')
    with pytest.raises(ValueError, match=r"give \['hen'\] different labels.*a folder for each class"):
        check(tmp_path, train, make_folders(tmp_path / 'val', 'cat', 'hen'))


# Two data sets, and a checkpoint.


def test_the_same_classes_in_another_order_for_validation_are_refused(tmp_path):
    train = make_coco(tmp_path)
    other = ('star', 'disc', 'triangle')
    with pytest.raises(
        ValueError, match=r'the data set for training and val_dataloader.dataset give .* different labels'
    ):
        check(tmp_path, train, make_coco(tmp_path, other, other))
    check(tmp_path, train, make_coco(tmp_path, ('disc', 'triangle'), ('disc', 'triangle')))


def test_other_classes_for_validation_pass(tmp_path):
    check(tmp_path, Numbers(('cat', 'dog')), Numbers(('dog', 'fish')))


def test_two_classes_of_the_same_name_pass(tmp_path):
    """ImageNet has two classes named crane."""
    check(tmp_path, Numbers(('crane', 'dog', 'crane')), Numbers(('crane', 'dog', 'crane')))


@pytest.mark.parametrize('classes', (('dog', 'cat', 'hen'), ['hen', 'dog', 'cat'], ('hen', 'cat')))
def test_a_checkpoint_with_another_order_is_tested_or_resumed(classes, tmp_path):
    build_runner(tmp_path, 1).train()
    path = tmp_path / 'epoch_1.pth'
    with pytest.raises(ValueError, match='the checkpoint and train_dataloader.dataset give .* different labels'):
        build_runner(tmp_path, 2, train=Numbers(classes), resume=True).train()
    # Training that only starts from it may have other classes.
    build_runner(tmp_path / 'new', 1, train=Numbers(classes), load_from=str(path)).train()
    for tested in (classes, ('cat', 'dog', 'hen')):
        runner = build_runner(tmp_path / 'val', val=Numbers(tested), scores=(1,), load_from=str(path))
        if tested is classes:
            with pytest.raises(ValueError, match='the checkpoint and val_dataloader.dataset'):
                runner.val()
        else:
            runner.val()


@pytest.mark.parametrize(
    'meta', (None, {}, dict(classes=None), dict(classes='cat'), dict(CLASSES=('dog', 'cat', 'hen')))
)
def test_a_checkpoint_without_classes_is_tested(meta, tmp_path):
    state_dict = build_runner(tmp_path).model.state_dict()
    torch.save(dict(state_dict=state_dict, meta=dict(dataset_meta=meta)), tmp_path / 'a.pth')
    build_runner(tmp_path, scores=(1,), load_from=str(tmp_path / 'a.pth')).val()


def test_the_check_can_be_left_out(tmp_path):
    runner = build_runner(tmp_path, train=Numbers('cat'), hooks=dict(check_classes=None))
    assert runner.train_loop
    runner.call_hook('before_run')


def test_random_orders_against_the_labels_of_the_data_set(tmp_path):
    """A run is refused if and only if an object's label leads to another name than its category's."""
    rng = np.random.default_rng(0)
    counts = {True: 0, False: 0}
    for _ in range(60):
        names = [f'n{i}' for i in range(6)]
        classes = tuple(rng.permutation(names)[: rng.integers(1, 4)].tolist())
        categories = sorted(rng.permutation(names)[: rng.integers(1, 6)].tolist(), reverse=bool(rng.integers(2)))
        dataset = make_coco(tmp_path, classes, categories)
        labels = [item['bbox_label'] for item in dataset.get_data_info(0)['instances']]
        named = [name for name in categories if name in classes]
        right = bool(named) and [classes[label] for label in labels] == named
        counts[right] += 1
        try:
            module._check_coco('train', dataset, module._read_categories(dataset.ann_file, None))
        except ValueError:
            assert not right, (classes, categories)
        else:
            assert right, (classes, categories)
    assert min(counts.values()) > 10
