"""What several commands share: photographs and configs in, files out, errors in a line."""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from glob import escape, glob
from io import StringIO
from pathlib import Path
from typing import Any

from ..configs import find
from ..requirements import require
from . import CommandError

# What of a folder is taken for photographs.
ENDINGS = ('.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')


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


def read_config(name: str):
    """Returns the config of a path, of a name among ours, or of a toolbox's such as ``mmdet::...``."""
    from mmengine.config import Config

    try:
        path = name if os.path.isfile(name) or '::' in name else find(name)
    except ValueError as error:
        raise CommandError(f'there is no file {name}, and {error}') from error
    try:
        return Config.fromfile(path)
    except Exception as error:  # Python's, of a file that is run
        raise CommandError(f'the config {path} cannot be read ({one_line(error)}): correct it') from error


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
