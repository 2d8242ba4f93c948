"""Training in several processes on CPUs gives the weights of one process. The commands are in docs/distributed.md."""

import json
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import mmcv
import mmpretrain
import numpy as np
import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.model import convert_sync_batchnorm
from mmengine.registry import RUNNERS, init_default_scope
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mmrednet.models.detection import InvolutionFPN, InvolutionRPNHead
from mmrednet.models.rednet import RedNet

TRAIN = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'train.py'
TORCHRUN = [sys.executable, '-m', 'torch.distributed.run']
IMAGES, VALIDATION_IMAGES, BATCH = 12, 7, 4
# BatchNorm would take the statistics of one process's images.
GN = dict(type='GN', num_groups=4)


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def run(*command, fails=False):
    # The processes also run this file, which imports from tests/.
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    command = [str(word) for word in command]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert (result.returncode != 0) == fails, result.stderr
    return result.stdout + result.stderr


# One model, wrapped by PyTorch.


class Dense(nn.Module):
    """A backbone, a neck and a head whose outputs are all in the loss, the mean over the images."""

    def __init__(self, neck_norm_cfg, **backbone):
        super().__init__()
        involution_cfg = dict(norm_cfg=neck_norm_cfg)
        init_default_scope('mmdet')
        backbone.update(base_channels=16, stem_channels=32, out_indices=(0, 1, 2, 3), zero_init_residual=False)
        self.backbone = RedNet(26, **backbone)
        self.neck = InvolutionFPN([64, 128, 256, 512], 32, num_outs=5, involution_cfg=involution_cfg)
        self.head = InvolutionRPNHead(32, feat_channels=32, involution_cfg=involution_cfg)

    def forward(self, x):
        return sum(y.square().mean() for ys in self.head(self.neck(self.backbone(x))) for y in ys)


CASES = [
    (dict(norm_cfg=GN), {}),
    (dict(norm_cfg=GN), dict(static_graph=True, gradient_as_bucket_view=True)),
    (dict(norm_cfg=GN, with_cp=True), dict(static_graph=True)),
    # mmdet's ResNet stops here: "Expected to mark a variable ready only once".
    (dict(norm_cfg=GN, with_cp=True), dict(find_unused_parameters=True)),
    (dict(frozen_stages=1, norm_eval=True), dict(broadcast_buffers=False)),
    (dict(frozen_stages=4, norm_eval=True, with_cp=True), {}),
]


def two_steps(model, images):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    for batch in images:
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()


def compare_with_one_process():
    distributed.init_process_group('gloo')
    rank = distributed.get_rank()
    images = torch.randn(2, 4, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for backbone, options in CASES:
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            models.append(Dense(GN, **backbone).double())
        one, two = (model.train() for model in models)
        start = [p.detach().clone() for p in one.parameters()]
        two_steps(one, images)
        two_steps(DistributedDataParallel(two, **options), images[:, 2 * rank : 2 * rank + 2])
        frozen = 0
        for (name, expected), actual, before in zip(one.named_parameters(), two.parameters(), start, strict=True):
            assert (actual - expected).norm() <= 1e-8 * (expected - before).norm(), (backbone, options, name)
            frozen += torch.equal(actual, before)
        assert frozen == sum(not p.requires_grad for p in two.parameters())
        # To the bit.
        theirs = torch.cat([p.detach().flatten() for p in two.parameters()])
        distributed.broadcast(theirs, 0)
        assert torch.equal(theirs, torch.cat([p.detach().flatten() for p in two.parameters()]))
    distributed.destroy_process_group()
    print(f'{len(CASES)} cases hold')


@pytest.mark.full
def test_two_halves_of_a_batch_are_the_batch():
    assert run(*TORCHRUN, '--standalone', '--nproc-per-node', 2, __file__).count(f'{len(CASES)} cases hold') == 2


def test_sync_bn_reaches_every_batch_norm_and_goes_back():
    model = Dense(dict(type='BN'))
    names = list(model.state_dict())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    # In the backbone, and in the kernel generation functions of four levels and of the head.
    assert norms == sum(name.startswith('backbone.') and name.endswith('running_mean') for name in names) + 5
    model = convert_sync_batchnorm(model)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in model.modules()) == norms
    assert list(model.state_dict()) == names


# Runs of mmengine.


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    """Noise: in smooth images the rounding decides between the equal pixels of a pooling's window."""
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for part, images in (('train', IMAGES), ('val', VALIDATION_IMAGES)):
        for i in range(images):
            mmcv.imwrite(
                rng.integers(0, 256, (48, 48, 3), np.uint8), str(root / f'{part}2017' / f'{i % 3}' / f'{i}.png')
            )
    return root


@pytest.fixture(scope='module')
def config(data_root, tmp_path_factory):
    """A small RedNet-26 for which only the gradients of other images matter: no BatchNorm, no random flips."""
    folder = tmp_path_factory.mktemp('one')
    config = Config.fromfile(ROOT / 'configs' / 'mmpretrain' / 'rednet26_demo.py')
    config.model.backbone.update(base_channels=16, stem_channels=32, norm_cfg=GN, zero_init_residual=False)
    config.model.head.in_channels = 512
    for name in ('train', 'val'):
        loader = config[f'{name}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=BATCH)
        loader.dataset.update(data_prefix=str(data_root / f'{name}2017'))
        loader.dataset.pipeline = [step for step in loader.dataset.pipeline if step.type != 'RandomFlip']
    config.test_dataloader = config.val_dataloader
    config.train_cfg.val_interval = 1
    config.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.001, momentum=0.9))
    config.auto_scale_lr = dict(base_batch_size=2 * BATCH)
    config.param_scheduler = None
    config.randomness = dict(seed=0)
    config.default_hooks.logger.interval = config.default_hooks.checkpoint.max_keep_ckpts = 10
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = mmpretrain.registry.MODELS.build(config.model)
    model.init_weights()
    # Not `load_from`, which DeepSpeed takes in its own format alone.
    config.model.init_cfg = dict(type='Pretrained', checkpoint=str(folder / 'start.pth'))
    torch.save(dict(state_dict=model.state_dict()), config.model.init_cfg.checkpoint)
    return config


def in_this_process(config, folder, **changes):
    config = Config(dict(config))
    config.merge_from_dict(changes)
    config.work_dir, config.experiment_name = str(folder), f'{folder}-{changes}'
    return RUNNERS.build(config)


@pytest.fixture(scope='module')
def weights(config, tmp_path_factory):
    """The weights before training, and after two epochs of one process that has the whole batch."""
    folder = tmp_path_factory.mktemp('one')
    scaled = dict(optimizer=dict(lr=0.0005))
    in_this_process(config, folder, optim_wrapper=scaled, train_cfg=dict(max_epochs=2)).train()
    start = config.model.init_cfg.checkpoint
    return torch.load(start)['state_dict'], torch.load(folder / 'epoch_2.pth')['state_dict']


def assert_trained_as_one(weights, path):
    state_dict = torch.load(path)['state_dict']
    start, expected, actual = (torch.cat([w[name].flatten() for name in state_dict]) for w in (*weights, state_dict))
    # Rounding, which decides which units are off, came to 0.04. Without the first epoch's momentum it would be 0.45.
    assert (actual - expected).norm() < 0.15 * (expected - start).norm()


def write(config, folder, **changes):
    config = Config(dict(config))
    config.merge_from_dict(changes)
    config.dump(folder / 'config.py')
    return folder / 'config.py'


def arguments(config, folder, processes, epochs):
    """The arguments of the toolbox's train.py."""
    return [
        *(config, '--launcher', 'pytorch', '--work-dir', folder, '--auto-scale-lr'),
        *(('--resume',) if epochs > 1 else ()),
        *('--cfg-options', f'train_cfg.max_epochs={epochs}', f'train_dataloader.batch_size={BATCH // processes}'),
    ]


def torchrun(config, folder, processes, epochs, **options):
    launcher = [*TORCHRUN, '--standalone', '--nproc-per-node', processes]
    return run(*launcher, TRAIN, *arguments(config, folder, processes, epochs), **options)


def logged(folder, key):
    lines = [json.loads(line) for path in sorted(folder.glob('*/vis_data/scalars.json')) for line in path.open()]
    return [line[key] for line in lines if key in line]


@pytest.mark.full
def test_two_processes_then_one(config, weights, tmp_path):
    path = write(config, tmp_path)
    mim = [sys.executable, '-m', 'mim', 'train', 'mmpretrain']
    run(*mim, *arguments(path, tmp_path, 2, 1), '--gpus', 2)
    # 2 x 2 images a step are half of the 8 that the learning rate is for.
    assert logged(tmp_path, 'lr') == [0.0005]
    # There are seven images, so one process repeats an image. The repeated one does not count.
    runner = in_this_process(config, tmp_path, load_from=str(tmp_path / 'epoch_1.pth'))
    accuracy = runner.test()['accuracy/top1']
    assert logged(tmp_path, 'accuracy/top1') == [pytest.approx(accuracy)]
    test = [sys.executable, '-m', 'mim', 'test', 'mmpretrain', path, '--checkpoint', tmp_path / 'epoch_1.pth']
    output = run(*test, '--launcher', 'pytorch', '--gpus', 2, '--work-dir', tmp_path / 'test')
    assert f'accuracy/top1: {accuracy:.4f}' in output
    in_this_process(config, tmp_path, resume=True, train_cfg=dict(max_epochs=2)).train()
    # Resuming takes the learning rate of the checkpoint.
    assert logged(tmp_path, 'lr') == [0.0005, 0.0005]
    assert_trained_as_one(weights, tmp_path / 'epoch_2.pth')


WORKER = """
import sys
import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, get_rank
from mmengine.registry import RUNNERS

runner = RUNNERS.build(Config.fromfile(sys.argv[1]))
model = runner.train().module
assert not any('SyncBatchNorm' in type(module).__name__ for module in model.modules())
parameters = torch.cat([p.detach().flatten() for p in model.parameters()])
sampler = runner.train_dataloader.sampler
sampler.set_epoch(3)
mine = dict(seed=runner.seed, random=torch.rand(()).item(), images=list(sampler), sum=parameters.double().sum().item())
everyones = all_gather_object(mine)
if get_rank() == 0:
    import json
    print('everyones', json.dumps(everyones))
"""


@pytest.mark.full
def test_what_processes_share_and_what_is_each_ones_own(config, tmp_path):
    backbone = dict(norm_cfg=dict(_delete_=True, type='SyncBN', requires_grad=True))
    path = write(config, tmp_path, model=dict(backbone=backbone, init_cfg=None), work_dir=str(tmp_path))
    config = Config.fromfile(path)
    config.merge_from_dict(dict(launcher='pytorch', train_cfg=dict(max_epochs=1), randomness=dict(diff_rank_seed=True)))
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.dump(path)
    (tmp_path / 'worker.py').write_text(WORKER)
    output = run(*TORCHRUN, '--standalone', '--nproc-per-node', 2, tmp_path / 'worker.py', path)
    assert output.count('SyncBN needs GPUs') == 1
    first, second = json.loads(output.partition('everyones ')[2].splitlines()[0])
    assert sorted(first['images'] + second['images']) == list(range(IMAGES))
    # Different images and statistics, the same averaged gradients.
    assert first['sum'] == second['sum']
    assert (first['seed'], second['seed']) == (0, 1)
    assert first['random'] != second['random']


# Longer ones: `--run-slow`.


@pytest.mark.slow
@pytest.mark.parametrize('rendezvous', ('static', 'c10d'))
def test_two_nodes_of_two_processes(config, weights, tmp_path, rendezvous):
    path, port = write(config, tmp_path), free_port()
    where = {
        'static': ['--master-addr', '127.0.0.1', '--master-port', port],
        'c10d': ['--rdzv-backend', 'c10d', '--rdzv-id', 'a', '--rdzv-endpoint', f'127.0.0.1:{port}'],
    }[rendezvous]
    for epochs in (1, 2):
        nodes = []
        for node in range(2):
            launcher = [*TORCHRUN, '--nnodes', 2, '--node-rank', node, *where, '--nproc-per-node', 2]
            command = [str(word) for word in (*launcher, TRAIN, *arguments(path, tmp_path, 4, epochs))]
            # A pipe that nobody reads yet would stop the other node.
            with open(tmp_path / f'node{node}.log', 'w') as log:
                nodes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        for node, process in enumerate(nodes):
            assert process.wait(timeout=300) == 0, (tmp_path / f'node{node}.log').read_text()[-3000:]
    assert_trained_as_one(weights, tmp_path / 'epoch_2.pth')


@pytest.mark.slow
def test_fsdp_resumes_with_another_number_of_processes(config, weights, tmp_path):
    strategy = dict(
        type='mmrednet.FSDPStrategy',
        model_wrapper=dict(use_orig_params=True),
        state_dict_cfg=dict(
            state_dict_type='FULL_STATE_DICT',
            state_dict_config=dict(type='FullStateDictConfig'),
            optim_state_dict_config=dict(type='FullOptimStateDictConfig'),
        ),
    )
    path = write(config, tmp_path, runner_type='FlexibleRunner', strategy=strategy)
    torchrun(path, tmp_path, 2, 1)
    torchrun(path, tmp_path, 4, 2)
    assert_trained_as_one(weights, tmp_path / 'epoch_2.pth')


@pytest.mark.slow
@pytest.mark.skipif(find_spec('deepspeed') is None, reason='DeepSpeed is not installed')
@pytest.mark.parametrize('stage', (0, 2))
def test_deepspeed_resumes_or_reports_that_it_cannot(stage, config, weights, tmp_path):
    strategy = dict(
        type='mmrednet.DeepSpeedStrategy',
        zero_optimization=dict(stage=stage),
        gradient_clipping=0,
        config=dict(zero_allow_untested_optimizer=True),
    )
    wrapper = dict(type='DeepSpeedOptimWrapper')
    path = write(config, tmp_path, runner_type='FlexibleRunner', strategy=strategy, optim_wrapper=wrapper)
    torchrun(path, tmp_path, 2, 1)
    if stage == 0:
        torchrun(path, tmp_path, 4, 2)
    else:
        assert 'used a DP world size of 2' in torchrun(path, tmp_path, 4, 2, fails=True)
        torchrun(path, tmp_path, 2, 2)
    state = torch.load(tmp_path / 'epoch_2.pth' / 'mp_rank_00_model_states.pt', weights_only=False)
    torch.save(dict(state_dict=state['module']), tmp_path / 'weights.pth')
    assert_trained_as_one(weights, tmp_path / 'weights.pth')


if __name__ == '__main__':
    compare_with_one_process()
