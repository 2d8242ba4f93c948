"""What several commands share: photographs, configs, models and devices in, files out, errors in a line."""

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from glob import escape, glob
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configs import find
from ..requirements import TOOLBOXES, require
from . import CommandError

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config, ConfigDict
    from torch import nn

# What of a folder is taken for photographs. Some need an OpenCV that was built for them: without, we say so.
ENDINGS = tuple('.avif .bmp .gif .heic .heif .jfif .jp2 .jpe .jpeg .jpg .pgm .png .ppm .tif .tiff .webp'.split())


def find_photos(arguments: Iterable[str], fail: Callable[[str], None]) -> list[str]:
    """Returns the files that the arguments stand for, each once, in their order."""
    photos: list[str] = []
    for argument in arguments:
        path = os.path.expanduser(argument)
        if os.path.isdir(path):
            files = filter(os.path.isfile, glob(os.path.join(escape(path), '*')))
            found = [file for file in files if file.lower().endswith(ENDINGS)]
            if not found:
                fail(f"{argument} is a folder without images: for those in its folders give '{argument}/**/*.jpg'")
        elif os.path.exists(path):
            found = [path]
        else:
            found = list(filter(os.path.isfile, glob(path, recursive=True)))
            if not found:
                fail(f'{argument} is no file or folder, and no pattern of one: give the path of a photograph')
        photos += sorted(found)
    return list(dict.fromkeys(photos))


def read_photos(photos: Iterable[str], fail: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Yields paths and images (H, W, 3) in BGR as the toolboxes' loader has them: turned as EXIF says, of 8 bits."""
    os.environ.setdefault('OPENCV_LOG_LEVEL', 'ERROR')  # of damaged images we tell
    try:
        require('mmcv')
    except ImportError as error:
        raise CommandError(one_line(error)) from error
    import mmcv

    for photo in photos:
        try:
            image, reason = mmcv.imread(photo), 'it is damaged, or in no format that OpenCV reads'
        except Exception as error:  # the file system's, which tell, and OpenCV's, which do not
            image, reason = None, one_line(error) if isinstance(error, OSError) else 'it is empty or damaged'
        if image is None:
            fail(f'{photo} cannot be read as an image ({reason}): give it as JPEG or PNG')
        else:
            yield photo, image


def to_count(text: str) -> int:
    """Reads a number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, but is {text}')
    return value


def to_path(text: str) -> Path:
    """Reads a path; shells leave ``--out=~/pictures`` as it is."""
    return Path(text).expanduser()


def read_config(name: str) -> 'Config':
    """Returns the config of a path, of a name among ours, or of a toolbox's such as ``mmdet::...``."""
    from mmengine.config import Config
    from mmengine.hub import get_config

    from .. import patches  # noqa: F401  (by which mmengine finds `mmrednet::...`)

    file = os.path.expanduser(name)
    try:
        if '::' not in name and not os.path.isfile(file):
            file = find(name)
    except ValueError as error:
        raise CommandError(f'there is no file {name}, and {error}') from error
    try:
        return get_config(name) if '::' in name else Config.fromfile(file)
    except Exception as error:  # Python's, of a file that is run
        raise CommandError(f'the config {name} cannot be read ({one_line(error)}): correct it') from error


def find_dataset(config: 'Config') -> 'ConfigDict':
    """Returns the data set of a config's test images that has the pipeline; others may wrap it."""
    dataset = config.test_dataloader.dataset
    while 'pipeline' not in dataset:
        dataset = dataset.get('dataset') or dataset.datasets[0]
    return dataset


def enter_scope(config: 'Config', source: str) -> str:
    """Has names stand for what they are in the toolbox that a config is for, and returns its name."""
    from mmengine.registry import init_default_scope

    scope = config.get('default_scope')
    if scope not in TOOLBOXES:
        raise CommandError(f'the default_scope of {source} is {scope!r}, and must be one of {[*TOOLBOXES]}: correct it')
    require(scope)
    init_default_scope(scope)
    return scope


def build_model(config: 'Config', source: str, checkpoint: str | None) -> 'nn.Module':
    """Returns the model of a config, with the weights of a checkpoint where one is given, on the CPU."""
    from ..checkpoint import check, load

    registry = import_module(f'{enter_scope(config, source)}.registry').MODELS
    if 'data_preprocessor' in config:  # where mmpretrain's configs have it, and the runner finds it
        config.model.setdefault('data_preprocessor', config.data_preprocessor)
    model = registry.build(config.model)
    if checkpoint is not None:
        remedy = 'give the config that it was trained with, or a checkpoint of this one'
        model.load_state_dict(check(model, load(checkpoint)['state_dict'], checkpoint, remedy), strict=False)
    return model


def find_device(name: str) -> 'torch.device':
    """Returns a device on which tensors can be made."""
    import torch

    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition('\n')[0].partition('. ')[0]  # pages of backends may follow
        raise CommandError(f'--device {name} cannot be used ({reason}): give another, such as cpu') from error


def write(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder, path.name)
            part.write_bytes(data)
            part.replace(path)
    except OSError as error:
        raise CommandError(f'{path} could not be written ({error}): make room there, or give another place') from error


@contextmanager
def quiet():
    """Keeps the toolboxes' progress bars, logs and warnings from the table; our own warnings get through."""
    from mmengine.logging import MMLogger

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


def one_line(error: Exception) -> str:
    """Returns an error in one line, with its type where the text may not say what is wrong."""
    text = '; '.join(line.strip() for line in str(error).splitlines() if line.strip()).replace(':;', ':')
    told = isinstance(error, CommandError | ImportError | OSError | ValueError) and text
    return text if told else f'{type(error).__name__}: {text}'.removesuffix(': ')
