"""The configs' way through mmengine's loop, on a few images that the demo's tool renders."""

import subprocess
import sys
from io import StringIO
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS, init_default_scope

from mmrednet.engine import ProgressBarHook

ROOT = Path(__file__).parents[1]


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
    # What torch >= 2.6 does by default, and what fails where a type in the file is not known as safe.
    torch.load(path, weights_only=True)
    config.train_cfg.max_epochs = 2
    config.resume = True
    config.experiment_name += '-resumed'
    runner = RUNNERS.build(config)
    runner.train()
    assert (runner.epoch, runner.iter) == (2, 4)
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


def test_two_processes_on_cpus(config, tmp_path):
    config.launcher = 'pytorch'
    config.train_dataloader.batch_size = 1
    config.dump(tmp_path / 'config.py')
    (tmp_path / 'worker.py').write_text(WORKER)
    command = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    run = subprocess.run(
        [sys.executable, *command, tmp_path / 'worker.py', tmp_path / 'config.py'], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert (tmp_path / 'epoch_1.pth').is_file()


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

    torch.save(Unsafe(), tmp_path / 'unsafe.pth')
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


def test_a_missing_checkpoint_is_named(config):
    config.load_from = 'no/such/file.pth'
    with pytest.raises(FileNotFoundError, match='load_from.*no/such/file.pth'):
        RUNNERS.build(config)


def test_progress_bar_on_a_terminal(monkeypatch):
    output = StringIO()
    monkeypatch.setattr('sys.stdout', output)

    class Runner:
        train_dataloader = [None] * 3

    hook = ProgressBarHook()
    for terminal in (False, True):
        monkeypatch.setattr(output, 'isatty', lambda terminal=terminal: terminal, raising=False)
        hook.before_train_epoch(Runner)
        for i in range(3):
            hook.after_train_iter(Runner, i)
        hook.after_train_epoch(Runner)
        assert ('3/3' in output.getvalue()) == terminal
