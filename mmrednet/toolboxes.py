"""Reads configs and builds models and pipelines of mmpretrain, mmdet and mmsegmentation."""

import copy
import os
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import StringIO

from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from . import patches  # noqa: F401  (makes mmengine find `mmrednet::...`)
from .checkpoint import check, load
from .checkpoint.layout import NAMES_IN_AN_ERROR
from .configs import find
from .errors import one_line
from .requirements import TOOLBOXES, require

# The inferencers of the toolboxes that the commands do not support, by the scope of their configs.
OTHER_INFERENCERS = {
    'mmaction': 'mmaction.apis.inferencers.MMAction2Inferencer',
    'mmdet3d': 'mmdet3d.apis.LidarDet3DInferencer or MonoDet3DInferencer',
    'mmocr': 'mmocr.apis.MMOCRInferencer',
    'mmpose': 'mmpose.apis.MMPoseInferencer',
    'mmrotate': 'mmdet.apis.init_detector and inference_detector',
    'mmyolo': 'mmdet.apis.init_detector and inference_detector',
}
REMEDY = 'give the config that it was trained with, or a checkpoint of this one'


def read_config(name: str) -> Config:
    """Reads a config: ``name`` is a path, the name of one of our configs, or a toolbox's config such as ``mmdet::...``.

    Raises:
        ValueError: There is no such config, or the file cannot be run.
    """
    file = os.path.expanduser(name)
    try:
        file = file if '::' in name or os.path.isfile(file) else find(name)
    except ValueError as error:
        raise ValueError(f'there is no file {name}, and {error}') from error
    try:
        return get_config(name) if '::' in name else Config.fromfile(file)
    except Exception as error:  # a config is Python code and can raise anything
        raise ValueError(f'the config {name} cannot be read ({one_line(error)}): correct it') from error


def find_dataset(config: Config) -> ConfigDict:
    """Returns the config of the test data set that has a pipeline. Other data sets may wrap it."""
    dataset = config.get('test_dataloader', {}).get('dataset')
    while dataset and 'pipeline' not in dataset:
        dataset = dataset.get('dataset') or next(iter(dataset.get('datasets') or [None]))
    if not dataset:
        raise ValueError(
            'the config has no test pipeline: give test_dataloader.dataset.pipeline, as the configs of the toolboxes do'
        )
    return dataset


def split_pipeline(config: Config) -> tuple[list, list]:
    """Splits the test pipeline of a config into the steps that load an image and the steps that follow.

    The first step takes ``dict(img_path=...)``. Steps that load annotations are left out. A pipeline that loads no
    image, such as CIFAR's, gets the default step.
    """
    loading, following = [], []
    for step in find_dataset(config).pipeline:
        kind = step['type'] if isinstance(step['type'], str) else step['type'].__name__
        kind = kind.rpartition('.')[2]
        if not kind.startswith('Load'):
            following.append(step)
        elif 'Image' in kind:
            loading.append(step)
    return loading or [dict(type='LoadImageFromFile')], following


def enter_scope(config: Config, source: str) -> str:
    """Makes the toolbox of a config mmengine's default scope, and returns its name. ``source`` is for errors.

    Raises:
        ValueError: The config is for a toolbox that the commands do not support.
        ImportError: The toolbox is not installed.
    """
    scope = config.get('default_scope')
    if scope not in TOOLBOXES:
        supported = f'this command supports the configs of {", ".join(TOOLBOXES)}'
        if scope is None:
            raise ValueError(f'{source} sets no default_scope: {supported}, so set it to one of these')
        other = OTHER_INFERENCERS.get(scope, f'the inferencer of {scope}')
        raise ValueError(f'{source} is a config of {scope}, and {supported}: use {other} after `import mmrednet`')
    require(scope)
    init_default_scope(scope)
    return scope


def build_model(config: Config, source: str, checkpoint: str | None) -> nn.Module:
    """Builds the model of a config on the CPU, with the weights of a checkpoint (a path or URL) or random ones.

    Raises:
        ValueError: The model cannot be built, or the checkpoint does not fit.
    """
    registry = import_module(f'{enter_scope(config, source)}.registry').MODELS
    if 'data_preprocessor' in config:  # mmpretrain's configs have it beside the model, and the runner moves it
        config.model.setdefault('data_preprocessor', config.data_preprocessor)
    with naming(source):
        model = registry.build(config.model)
    if checkpoint is not None:
        load_weights(model, load(checkpoint)['state_dict'], checkpoint)
    return model


@contextmanager
def naming(source: str):
    """Adds the name of a config to errors that are raised while something is built from it."""
    try:
        yield
    except Exception as error:  # a config can name anything
        raise ValueError(
            f'{source} cannot be built ({one_line(error)}): correct the config, or install what it needs'
        ) from error


def load_weights(model: nn.Module, state_dict: OrderedDict, source: str, remedy: str = REMEDY) -> None:
    """Loads a checkpoint's parameters into a model. ``source`` and ``remedy`` are for errors.

    Raises:
        ValueError: Names or shapes differ from the model's, or values are NaN or infinite.
    """
    state_dict = check(model, state_dict, source, remedy)
    learned = {name for name, _ in model.named_parameters()}
    # Other buffers, such as an attention mask, may hold infinity.
    bad = [
        name
        for name, value in state_dict.items()
        if (name in learned or '.running_' in name) and isinstance(value, Tensor) and not value.isfinite().all()
    ]
    if bad:
        shown = ', '.join(bad[:NAMES_IN_AN_ERROR]) + ', ...' * (len(bad) > NAMES_IN_AN_ERROR)
        raise ValueError(
            f'{len(bad)} parameters in {source} hold NaN or infinity ({shown}): the training diverged, so give an '
            'earlier checkpoint, or train with a smaller learning rate or gradient clipping'
        )
    model.load_state_dict(state_dict, strict=False)


def find_metainfo(config: Config) -> Mapping:
    """Returns ``classes``, ``palette`` and so on of a config's test data set, without reading its files."""
    registry = import_module(f'{config.default_scope}.registry').DATASETS
    dataset = {**copy.deepcopy(find_dataset(config)), 'lazy_init': True, 'pipeline': []}
    return registry.build(dataset).metainfo


@contextmanager
def quiet():
    """Hides the progress bars, logs and warnings of the toolboxes. Warnings of mmrednet are shown."""
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
