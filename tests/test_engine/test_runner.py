"""The configs run in mmengine's loop, on a few images that the demo's tool renders."""

import re
import subprocess
import sys
from argparse import ArgumentParser
from io import StringIO
from os import terminal_size
from pathlib import Path
from pickle import UnpicklingError

import mmcv
import numpy as np
import pytest
import torch
from helpers import ROOT
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleLR
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.registry import RUNNERS, init_default_scope
from mmpretrain.registry import MODELS
from test_engine.toy import Numbers, build_runner

from mmrednet.engine import ProgressBarHook
from mmrednet.engine.hooks.progress import format_progress


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp('demo')
    tool = ROOT / 'tools' / 'make_demo_data.py'
    subprocess.run([sys.executable, tool, '--out', root, '--train', '4', '--val', '2', '--size', '64'], check=True)
    return root


@pytest.fixture
def config(data_root, tmp_path):
    init_default_scope('mmdet')
    config = Config.fromfile(ROOT / 'configs' / 'mmdet' / 'faster_rcnn_rednet50_invfpn_demo.py')
    config.model.backbone.depth = 26
    for name in ('train', 'val', 'test'):
        loader = config[f'{name}_dataloader']
        loader.dataset.data_root = f'{data_root}/'
        loader.batch_size = 2
        loader.num_workers = 0
        loader.persistent_workers = False
    config.val_evaluator.ann_file = config.test_evaluator.ann_file = f'{data_root}/annotations/instances_val2017.json'
    config.train_cfg.max_epochs = config.train_cfg.val_interval = 1
    config.work_dir = str(tmp_path)
    config.experiment_name = tmp_path.name
    return config


def test_trains_resumes_and_tests_with_safe_loading(config, tmp_path):
    RUNNERS.build(config).train()
    path = tmp_path / 'epoch_1.pth'
    # The default since torch 2.6. It fails if a type in the file is not registered as safe.
    torch.load(path, weights_only=True)
    config.train_cfg.max_epochs = 2
    config.resume = True
    config.experiment_name += '-resumed'
    runner = RUNNERS.build(config)
    runner.train()
    assert (runner.epoch, runner.iter) == (2, 4)
    # The demo trains from random weights, so it freezes nothing.
    assert all(parameter.requires_grad for parameter in runner.model.parameters())
    config.load_from, config.resume = str(tmp_path / 'epoch_2.pth'), False
    config.experiment_name += '-tested'
    assert 'coco/bbox_mAP_50' in RUNNERS.build(config).test()


WORKER = """
import sys
from mmengine.config import Config
from mmengine.registry import RUNNERS
runner = RUNNERS.build(Config.fromfile(sys.argv[1]))
assert runner.world_size == 2
runner.train()
"""


def train_in_two_processes(config, folder):
    config.launcher = 'pytorch'
    config.dump(folder / 'config.py')
    (folder / 'worker.py').write_text(WORKER)
    command = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    run = subprocess.run(
        [sys.executable, *command, folder / 'worker.py', folder / 'config.py'], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.full
def test_two_processes_on_cpus(config, tmp_path):
    config.train_dataloader.batch_size = 1
    train_in_two_processes(config, tmp_path)
    assert (tmp_path / 'epoch_1.pth').is_file()


@pytest.mark.full
def test_load_from_freezes_also_in_two_processes_and_after_resuming(config, tmp_path):
    """Parameters frozen after DistributedDataParallel was built would make it wait for their gradients."""
    config.model.backbone.update(frozen_stages=1, norm_eval=True)
    config.train_dataloader.batch_size = 1
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.optim_wrapper.optimizer = dict(type='SGD', lr=0.01, weight_decay=0.1)
    start = MODELS.build(config.model)
    config.load_from = str(tmp_path / 'start.pth')
    torch.save(dict(state_dict=start.state_dict()), config.load_from)
    for epoch in (1, 2):
        config.train_cfg.max_epochs = epoch
        train_in_two_processes(config, tmp_path)
        state_dict = torch.load(tmp_path / f'epoch_{epoch}.pth')['state_dict']
        for name, value in start.state_dict().items():
            statistics = name.startswith('backbone.') and 'running' in name
            frozen = name.startswith(('backbone.stem.', 'backbone.layer1.')) or statistics
            if frozen or name == 'backbone.layer2.0.conv1.weight':
                assert torch.equal(state_dict[name], value) == frozen, name
        config.load_from, config.resume = None, True


def parse(*options):
    """Parses `--cfg-options` as the toolboxes' command lines do."""
    parser = ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args(['--cfg-options', *options]).cfg_options


@pytest.mark.parametrize(
    'checkpoint', ('mmrednet://rednet50', 'a/b.pth', 'https://a.b/c.pdparams#sha256=0123456789abcdef')
)
def test_where_a_dense_config_starts_from_is_an_option(checkpoint, config, monkeypatch):
    asked = []
    monkeypatch.setattr(
        'mmrednet.checkpoint.pretrained.load', lambda path, _: asked.append(path) or dict(state_dict={})
    )
    config.merge_from_dict(parse(f'model.backbone.init_cfg.checkpoint={checkpoint}'))
    with pytest.raises(ValueError, match='does not fit'):
        RUNNERS.build(config).model.init_weights()
    assert asked == [checkpoint]


@pytest.mark.parametrize('name', ('mmdet/faster_rcnn_rednet50_invfpn', 'mmseg/semantic_fpn_rednet50_invfpn'))
def test_weights_that_cannot_be_had_stop_training_before_the_data_sets_are_built(name, tmp_path, monkeypatch):
    """A dense config as it is, on a machine without a network and without the data."""

    def no_network(*_):
        raise OSError('Name or service not known')

    monkeypatch.setattr('mmrednet.checkpoint.files.fetch', no_network)
    config = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    config.work_dir, config.experiment_name = str(tmp_path), tmp_path.name
    init_default_scope(config.default_scope)
    with pytest.raises(OSError, match='mmrednet://rednet50.*init_cfg.*Name or service not known') as error:
        RUNNERS.build(config.copy()).train()
    lines = [line.strip() for line in str(error.value).splitlines() if '--cfg-options' in line]
    file, scratch, whole = (parse(*line.split()[1:]) for line in lines)
    assert file == {'model.backbone.init_cfg.checkpoint': 'FILE'} and whole == {'model.backbone.init_cfg': None}
    # With either option, pasted as printed, the checkpoint is no error any more. The next error is the missing data.
    for options in (scratch, whole):
        pasted = config.copy()
        pasted.merge_from_dict(options)
        pasted.experiment_name += str(len(options))
        runner = RUNNERS.build(pasted)
        with pytest.raises(FileNotFoundError, match='data_root'):
            runner.train()
        runner.model.init_weights()
        if options is scratch:
            assert all(parameter.requires_grad for parameter in runner.model.parameters())


def test_testing_needs_no_file_of_init_cfg(config, tmp_path):
    config.model.backbone.init_cfg = dict(checkpoint='absent.pth')
    config.load_from = str(tmp_path / 'start.pth')
    torch.save(dict(state_dict=MODELS.build(config.model).state_dict()), config.load_from)
    assert 'coco/bbox_mAP_50' in RUNNERS.build(config).test()


@pytest.mark.full
def test_two_processes_have_the_gradients_of_one(tmp_path):
    # Noise: in smooth images the rounding decides between the equal pixels of a pooling's window.
    rng = np.random.default_rng(0)
    for i in range(4):
        folder = tmp_path / 'images' / f'class{i % 2}'
        folder.mkdir(parents=True, exist_ok=True)
        mmcv.imwrite(rng.integers(0, 256, (48, 48, 3), np.uint8), str(folder / f'{i}.png'))
    config = Config.fromfile(ROOT / 'configs' / 'mmpretrain' / 'rednet26_demo.py')
    config.model.head.num_classes = 2
    # Group norm: nothing but the gradients goes from process to process.
    config.model.backbone.update(norm_cfg=dict(type='GN', num_groups=4), zero_init_residual=False)
    config.train_dataloader = dict(
        batch_size=4,
        num_workers=0,
        persistent_workers=False,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='CustomDataset',
            data_prefix=str(tmp_path / 'images'),
            pipeline=[step for step in config.train_dataloader.dataset.pipeline if step.type != 'RandomFlip'],
        ),
    )
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.test_dataloader = config.test_cfg = config.test_evaluator = None
    config.train_cfg = dict(by_epoch=True, max_epochs=1)
    # One step of SGD, so long that the old weights add no rounding errors to the difference, which is the gradient.
    config.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e4))
    config.param_scheduler = None

    def run(name, train, **changes):
        config.work_dir, config.experiment_name = str(tmp_path / name), f'{tmp_path.name}-{name}'
        (tmp_path / name).mkdir()
        config.merge_from_dict(changes)
        train(config)
        return torch.load(tmp_path / name / 'epoch_1.pth')['state_dict']

    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    start = MODELS.build(config.model)
    start.init_weights()
    config.load_from = str(tmp_path / 'start.pth')
    torch.save(dict(state_dict=start.state_dict()), config.load_from)
    one = run('one', lambda config: RUNNERS.build(config).train())
    two = run(
        'two', lambda config: train_in_two_processes(config, tmp_path / 'two'), **{'train_dataloader.batch_size': 2}
    )
    for name, value in start.state_dict().items():
        gradient, distributed = value - one[name], value - two[name]
        assert gradient.norm() > 0, name
        # Rounding alone is 1e-6. It was 7e-3 on one kind of CPU, where it decided a pooling or the sign of a unit. The
        # gradients of half of the images are off by 1 in the first layer, as are doubled gradients.
        assert (distributed - gradient).norm() < 0.05 * gradient.norm(), name


def test_what_runs_put_into_checkpoints_loads_safely(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    held = dict(
        values=[np.float32(1.5), np.bool_(True), np.uint8(3)],  # mmseg's best mIoU, a message hub's numbers
        arrays=[np.zeros((2, 3), dtype) for dtype in ('bool', 'int8', 'uint8', 'int32', 'float16', 'float32', 'U3')],
        metainfo=ConfigDict(classes=('a', 'b'), nested=dict(palette=[1])),
        scheduler=OneCycleLR(optimizer, eta_max=0.1, total_steps=10).state_dict(),
    )
    torch.save(held, tmp_path / 'a.pth')
    loaded = torch.load(tmp_path / 'a.pth')
    assert loaded['values'] == held['values'] and loaded['metainfo'] == held['metainfo']
    assert all(
        np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(loaded['arrays'], held['arrays'], strict=True)
    )
    assert loaded['scheduler'] == held['scheduler']


@pytest.mark.parametrize('name', ('os.system', 'builtins.eval'))
def test_unsafe_checkpoints_are_still_refused(name, tmp_path):
    class Unsafe:
        def __reduce__(self):
            module, function = name.split('.')
            return getattr(__import__(module), function), ('1',)

    torch.save(Unsafe(), tmp_path / 'unsafe.pth')
    with pytest.raises(UnpicklingError):
        torch.load(tmp_path / 'unsafe.pth')


def test_checkpoints_reach_no_attribute_but_the_methods_of_log_buffers(tmp_path):
    class Unsafe:
        def __reduce__(self):
            return getattr, (torch.nn.Module, '__init__')

    class Private:
        def __reduce__(self):
            return getattr, (HistoryBuffer, '__init__')

    class Initialiser:
        def __reduce__(self):
            return getattr, (OneCycleParamScheduler, '__init__')

    for unsafe in (Unsafe(), Private(), Initialiser()):
        torch.save(unsafe, tmp_path / 'unsafe.pth')
        with torch.serialization.safe_globals([torch.nn.Module]), pytest.raises(UnpicklingError, match='HistoryBuffer'):
            torch.load(tmp_path / 'unsafe.pth')


def test_a_missing_data_root_is_named(config):
    config.train_dataloader.dataset.data_root = 'no/such/folder/'
    with pytest.raises(FileNotFoundError, match='data_root.*no/such/folder.*link'):
        RUNNERS.build(config).train()


def test_a_missing_data_root_inside_a_wrapper_is_named(config):
    dataset = config.train_dataloader.dataset
    dataset.data_root = 'no/such/folder/'
    config.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=dataset)
    with pytest.raises(FileNotFoundError, match='data_root.*no/such/folder'):
        RUNNERS.build(config).train()


def test_a_data_root_that_nothing_needs_may_be_missing(config, data_root):
    dataset = config.train_dataloader.dataset
    dataset.ann_file = str(data_root / dataset.ann_file)
    dataset.data_prefix = dict(img=str(data_root / dataset.data_prefix.img))
    dataset.data_root = Path('no', 'such', 'folder')
    assert len(RUNNERS.get('mmrednet.Runner').build_dataloader(config.train_dataloader).dataset) == 4


def test_a_missing_checkpoint_is_named(config):
    config.load_from = 'no/such/file.pth'
    with pytest.raises(FileNotFoundError, match='load_from.*no/such/file.pth'):
        RUNNERS.build(config)


@pytest.fixture
def terminal(monkeypatch):
    """Returns a function that makes the output a terminal of so many columns, and returns what is written there."""
    output = StringIO()

    def open_terminal(columns):
        monkeypatch.setattr('sys.stdout', output)
        monkeypatch.setattr(output, 'isatty', lambda: bool(columns), raising=False)
        monkeypatch.setattr('mmrednet.engine.hooks.progress.get_terminal_size', lambda: terminal_size((columns, 24)))
        return output

    return open_terminal


class Progress:
    """The attributes of a runner that the bar reads."""

    train_dataloader = [None] * 3
    val_dataloader = [None] * 2
    train_loop = None
    iter = 0


@pytest.mark.parametrize('columns', (0, 80))
def test_progress_bar_on_a_terminal(columns, terminal):
    output = terminal(columns)
    hook = ProgressBarHook()
    hook.before_train_epoch(Progress)
    for i in range(3):
        hook.after_train_iter(Progress, i)
    hook.after_train_epoch(Progress)
    assert ('3/3' in output.getvalue()) == bool(columns)


@pytest.mark.parametrize('columns', (20, 80, 200))
def test_progress_bar_of_training_by_iterations(columns, terminal, tmp_path):
    """80 iterations of 20 batches, with a validation of 2 batches after every 40."""
    train = Numbers()
    train.inputs = train.inputs.repeat(10, 1)
    loop = dict(by_epoch=False, max_iters=80, val_interval=40)
    options = dict(default_hooks=dict(bar=dict(type='mmrednet.ProgressBarHook'), checkpoint=None))
    runner = build_runner(tmp_path, train=train, scores=(1, 2), train_cfg=loop, **options)
    output = terminal(columns)
    runner.train()
    assert len(runner.train_dataloader) == 20
    # Only a bar begins with a carriage return; each leaves the cursor in the first column of its line.
    lines = [
        line for line in output.getvalue().replace('\n', '\r').split('\r') if line.startswith(('train [', 'val ['))
    ]
    width = min(columns - 1, 60)
    assert {len(line) for line in lines} == {width}
    if columns > 60:
        numbers = [re.match(r'(train|val) +\[>* *\] (\d+/\d+), [\d.]+ it/s, ', line).groups() for line in lines]
        expected = [('train', f'{i}/80') for i in range(1, 81)]
        for place in (80, 40):
            expected[place:place] = [('val', '1/2'), ('val', '2/2')]
        assert numbers == expected


def test_progress_bar_of_a_run_that_is_resumed():
    """The time left comes from the iterations since it was resumed."""
    line = format_progress('train', begin=700, done=750, total=800, seconds=10, columns=80)
    assert line.rstrip() == 'train [>>>>>>>>>>>>>> ] 750/800, 5.0 it/s, 0:00:10 left'
