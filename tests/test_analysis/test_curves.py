"""Curves from logs that mmengine's runner wrote."""

import json
from pathlib import Path

import pytest
import torch
from matplotlib.colors import to_rgba
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

import mmrednet.registry  # noqa: F401 (resuming needs what it changes in mmengine)
from mmrednet.__main__ import main
from mmrednet.analysis.curves import draw_curves, read_curves


class Counting(BaseModel):
    """Its loss is how often it was called in training, which a checkpoint keeps, over ``divisor``."""

    def __init__(self, divisor):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer('calls', torch.zeros(()))
        self.divisor = divisor

    def forward(self, mode='tensor', **kwargs):
        if mode != 'loss':
            return [{}]
        self.calls += 1
        return dict(loss=self.calls / self.divisor + self.weight)


class Calls(BaseMetric):
    """Ten times the calls."""

    model = None

    def process(self, data_batch, data_samples):
        self.results.append(10 * float(self.model.calls))

    def compute_metrics(self, results):
        return dict(mIoU=results[0])


def train(
    work_dir, train_cfg, number, logger=dict(interval=1), log_processor=dict(), divisor=1.0, resume=False, length=3
):
    model, metric = Counting(divisor), Calls()
    metric.model = model
    # Where a run of iterations begins its data anew, mmengine waits for two seconds.
    length = 3 if train_cfg['by_epoch'] else 20
    loader = dict(dataset=[dict(x=0)] * length, sampler=dict(type='DefaultSampler', shuffle=False), batch_size=1)
    Runner(
        model,
        str(work_dir),
        train_dataloader=loader,
        val_dataloader=loader,
        train_cfg=train_cfg,
        val_cfg=dict(),
        val_evaluator=Evaluator([metric]),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', **logger),
            checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=train_cfg['by_epoch']),
        ),
        log_processor=dict(window_size=1, **log_processor),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        experiment_name=f'{Path(work_dir).name}_{number}',
        resume=resume,
    ).train()
    for folder in Path(work_dir).glob('2*/'):
        folder.rename(Path(work_dir, f'run{number}'))  # two may begin in one second


BY_EPOCH = dict(by_epoch=True, max_epochs=3, val_interval=1)
BY_ITER = dict(by_epoch=False, max_iters=9, val_interval=3)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What the runner asks compilers and drivers for its log takes seconds."""
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)


@pytest.mark.parametrize(
    ('how', 'hierarchy'), (('epochs', False), ('iterations', True), ('iterations, metrics by epoch', False))
)
def test_curves_of_a_run_and_of_one_that_is_resumed(how, hierarchy, tmp_path):
    cfg = BY_EPOCH if how == 'epochs' else BY_ITER
    logger = dict(interval=1, log_metric_by_epoch=how != 'iterations')
    processor = dict(by_epoch=cfg['by_epoch'], log_with_hierarchy=hierarchy)
    train(tmp_path, cfg, 1, logger, processor)
    calls = list(range(1, 10))
    curves = read_curves(tmp_path)
    assert curves['loss'] == (calls, [float(x) for x in calls])
    assert curves['mIoU'] == ([3, 6, 9], [30.0, 60.0, 90.0])
    assert curves['lr'] == (calls, [0.0] * 9)

    # From its checkpoint of epoch 2, which is iteration 6, or iteration 8; what it logged after that goes.
    last = tmp_path / 'last_checkpoint'
    start, name = (6, 'epoch_2.pth') if how == 'epochs' else (8, 'iter_8.pth')
    last.write_text(str(tmp_path / name))
    further = dict(cfg, max_epochs=4) if how == 'epochs' else dict(cfg, max_iters=12)
    train(tmp_path, further, 2, logger, processor, divisor=100.0, resume=True)
    curves = read_curves(tmp_path)
    losses = [float(x) if x <= start else x / 100 for x in range(1, 13)]
    assert curves['loss'] == (list(range(1, 13)), pytest.approx(losses))
    assert curves['mIoU'] == ([3, 6, 9, 12], [30.0, 60.0, 90.0, 120.0])
    assert curves == read_curves(tmp_path / '.')
    assert read_curves(tmp_path / 'run1') == read_curves(tmp_path / 'run1' / 'vis_data' / 'scalars.json')


def test_rarely_logged(tmp_path):
    """A validation stands beside an iteration that was logged, whether that came before it or after."""
    train(tmp_path, dict(BY_ITER, val_interval=2), 1, dict(interval=4), dict(by_epoch=False))
    curves = read_curves(tmp_path)
    assert curves['loss'] == ([4, 8], [4.0, 8.0])
    assert curves['mIoU'] == ([4, 4, 4, 8, 8], [20.0, 40.0, 60.0, 80.0, 90.0])  # and at the end, at 9


def test_a_run_that_began_anew(tmp_path):
    train(tmp_path, BY_EPOCH, 1)
    train(tmp_path, dict(BY_EPOCH, max_epochs=1), 2, divisor=2.0)
    assert read_curves(tmp_path)['loss'] == ([1, 2, 3], [0.5, 1.0, 1.5])


def write(path, *lines, end='\n'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(line if isinstance(line, str) else json.dumps(line) for line in lines) + end)
    return path


def test_a_log_that_is_being_written(tmp_path):
    entry = dict(loss=float('nan'), iter=1, step=1)
    path = write(tmp_path / 'scalars.json', entry, '{"loss": 0.2', end='')
    assert read_curves(path)['loss'][0] == [1]


@pytest.mark.parametrize(
    ('lines', 'text'),
    (
        ((dict(loss=1, iter=1, step=1), 'loss 3', dict(loss=1, iter=2, step=2)), "line 2 is 'loss 3'"),
        ((dict(loss=1),), 'line 1'),
        (('[1, 2]',), 'line 1'),
        ((dict(mIoU=50.0, step=0),), 'holds no log of a training'),
        ((dict(acc=1, iter=1, step=1),), 'no run has logged one of'),
    ),
)
def test_what_is_no_log(lines, text, tmp_path, capsys):
    path = write(tmp_path / 'a' / 'vis_data' / 'scalars.json', *lines)
    for source in (path, tmp_path):
        assert main(['curves', str(source), '--out', str(tmp_path / 'curves.png')]) == 2
        error = capsys.readouterr().err
        assert error.startswith('mmrednet curves: error: ') and text in error and error.count('\n') == 1
    assert not (tmp_path / 'curves.png').exists()


def test_the_command(tmp_path, capsys):
    for number, run in enumerate(('a', 'b')):
        write(
            tmp_path / run / '1' / 'vis_data' / 'scalars.json', *(dict(loss=i + number, iter=i, step=i) for i in (1, 2))
        )
    runs = [str(tmp_path / run) for run in ('a', 'b')]
    for ending, begin in dict(png=b'\x89PNG', svg=b'<?xml', pdf=b'%PDF').items():
        out = tmp_path / 'new' / f'curves.{ending}'
        assert not main(['curves', *runs, '--out', str(out)])
        assert out.read_bytes().startswith(begin)
    for arguments, text in {
        ('--out', f'{tmp_path}/curves.jpeg2'): 'ending .png, .svg or .pdf',
        ('--names', 'mAP', '--out', f'{tmp_path}/c.png'): "no run has logged 'mAP': give some of loss",
    }.items():
        assert main(['curves', *runs, *arguments]) == 2
        assert text in capsys.readouterr().err
    for folder, text in {'c': 'c holds no vis_data/scalars.json', '': f'give those of {", ".join(runs)} that'}.items():
        assert main(['curves', str(tmp_path / folder), '--out', str(out)]) == 2
        assert text in capsys.readouterr().err


def test_runs_share_a_picture():
    runs = dict(a={'loss': ([1, 2], [3.0, 4.0]), 'mIoU': ([2], [9.0])}, b={'loss': ([1], [5.0]), 'x': ([1], [1.0])})
    loss, metric = draw_curves(runs).axes
    assert [axis.get_title() for axis in (loss, metric)] == ['loss', 'mIoU']
    drawn = [[(line.get_xydata().tolist(), to_rgba(line.get_color())) for line in a.lines] for a in (loss, metric)]
    first, second = map(to_rgba, ('C0', 'C1'))
    assert drawn == [[([[1, 3], [2, 4]], first), ([[1, 5]], second)], [([[2, 9]], first), ([], second)]]
    assert [axis.get_title() for axis in draw_curves(runs, ['x']).axes] == ['x']
