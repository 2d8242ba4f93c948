"""A run of mmengine with a network of a few parameters, which takes a fraction of a second."""

import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from torch import nn

from mmrednet.engine import Runner


class Numbers:
    """Eight random inputs of four numbers, with the data set's description."""

    def __init__(self, classes=('cat', 'dog', 'hen'), **attributes):
        self.metainfo = dict(classes=classes)
        self.inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
        vars(self).update(attributes)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return dict(inputs=self.inputs[index])


class Network(BaseModel):
    def __init__(self, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4))

    def forward(self, inputs, mode='tensor'):
        outputs = self.layers(torch.stack(list(inputs)))
        return dict(loss=outputs.square().mean()) if mode == 'loss' else list(outputs)


class Score(BaseMetric):
    """Gives the next of the given scores at each validation."""

    def __init__(self, scores):
        super().__init__()
        self.scores = iter(scores)

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(acc=next(self.scores))


class QuickRunner(Runner):
    def _log_env(self, env_cfg):
        """Looks for no compilers, which takes most of the time of such a run."""


def build_runner(folder, epochs=2, checkpoint=(), scores=(), width=8, train=None, val=None, hooks=(), **options):
    """Returns a runner with two batches in an epoch.

    Args:
        folder (Path): The run's folder.
        epochs (int): Number of epochs.
        checkpoint (dict): Arguments of mmengine's ``CheckpointHook``.
        scores (Sequence[float]): The accuracy of each validation; without it there is none.
        width (int): Number of hidden units.
        train (Dataset, optional): For training instead of :class:`Numbers`.
        val (Dataset, optional): For validation instead of :class:`Numbers`.
        hooks (dict): More of ``default_hooks``.
        **options: The runner's other arguments.
    """

    def loader(dataset, shuffle, sampler='DefaultSampler'):
        sampler = dict(type=sampler, shuffle=shuffle)
        return dict(batch_size=4, num_workers=0, dataset=dataset or Numbers(), sampler=sampler)

    if scores:
        options.update(val_dataloader=loader(val, False), val_cfg=dict(), val_evaluator=Evaluator(Score(scores)))
    settings = dict(
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        param_scheduler=dict(type='LinearLR', start_factor=0.1, end=5),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', **{'interval': 1, **dict(checkpoint)}), **dict(hooks)
        ),
        randomness=dict(seed=0),
        log_level='WARNING',
    )
    settings.update(options)
    name = f'{folder}-{build_runner.count}'
    build_runner.count += 1
    # At the end of the other sampler's epoch, mmengine's loop by iterations waits for two seconds.
    sampler = 'DefaultSampler' if settings['train_cfg']['by_epoch'] else 'InfiniteSampler'
    train_dataloader = loader(train, True, sampler)
    return QuickRunner(Network(width), str(folder), train_dataloader, experiment_name=name, **settings)


build_runner.count = 0
