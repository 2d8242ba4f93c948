"""Configs, models and data sets of any toolbox, as commands need them."""

import os
import warnings
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import StringIO

from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import nn

from . import patches  # noqa: F401  (mmengine finds `mmrednet::...` by it)
from .checkpoint import check, load
from .configs import find
from .errors import one_line
from .requirements import TOOLBOXES, require


def read_config(name: str) -> Config:
    """Returns the config of a path, of a name among ours, or of a toolbox's such as ``mmdet::...``."""
    file = os.path.expanduser(name)
    try:
        if '::' not in name and not os.path.isfile(file):
            file = find(name)
    except ValueError as error:
        raise ValueError(f'there is no file {name}, and {error}') from error
    try:
        return get_config(name) if '::' in name else Config.fromfile(file)
    except Exception as error:  # Python's, of a file that is run
        raise ValueError(f'the config {name} cannot be read ({one_line(error)}): correct it') from error


def find_dataset(config: Config) -> ConfigDict:
    """Returns the data set of a config's test images that has the pipeline; others may wrap it."""
    dataset = config.test_dataloader.dataset
    while 'pipeline' not in dataset:
        dataset = dataset.get('dataset') or dataset.datasets[0]
    return dataset


def enter_scope(config: Config, source: str) -> str:
    """Has names stand for what they are in the toolbox that a config is for, and returns its name."""
    scope = config.get('default_scope')
    if scope not in TOOLBOXES:
        raise ValueError(f'the default_scope of {source} is {scope!r}, and must be one of {[*TOOLBOXES]}: correct it')
    require(scope)
    init_default_scope(scope)
    return scope


def build_model(config: Config, source: str, checkpoint: str | None) -> nn.Module:
    """Returns the model of a config, with the weights of a checkpoint where one is given, on the CPU."""
    registry = import_module(f'{enter_scope(config, source)}.registry').MODELS
    if 'data_preprocessor' in config:  # where mmpretrain's configs have it, and the runner finds it
        config.model.setdefault('data_preprocessor', config.data_preprocessor)
    model = registry.build(config.model)
    if checkpoint is not None:
        remedy = 'give the config that it was trained with, or a checkpoint of this one'
        model.load_state_dict(check(model, load(checkpoint)['state_dict'], checkpoint, remedy), strict=False)
    return model


@contextmanager
def quiet():
    """Keeps the toolboxes' progress bars, logs and warnings from the table; our own warnings get through."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter('ignore')
            warnings.filterwarnings('default', module='mmrednet')
            yield
    finally:
        logger.setLevel(level)
