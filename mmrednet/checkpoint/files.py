"""Reading checkpoints from files, URLs and public names, in three formats, and writing them in two.

| ending | format |
| --- | --- |
| ``.pdparams`` | Paddle's format, which is only read: :mod:`mmrednet.checkpoint.paddle` |
| ``.safetensors`` | safetensors, with ``meta`` as JSON in the file's metadata |
| any other | PyTorch's format, read with ``weights_only`` |
"""

import json
import os
import re
import warnings
import zipfile
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import torch
from mmengine.runner import CheckpointLoader

from .. import patches  # noqa: F401  (registers the types in mmengine's checkpoints as safe)
from ..errors import one_line, printable
from ..files import replacing
from . import paddle
from .download import check_sha256, fetch
from .layout import convert


class PublicWeights(NamedTuple):
    """Weights that others publish: the URL of the file, and the top-1 accuracy that the publisher states."""

    address: str
    top1: float


# PaddleClas' weights for ImageNet, converted from the authors' according to PaddleClas. It publishes no hash.
PADDLE = 'https://paddle-imagenet-models-name.bj.bcebos.com/dygraph'
IMAGENET = {
    f'rednet{depth}': PublicWeights(f'{PADDLE}/RedNet{depth}_pretrained.pdparams', top1)
    for depth, top1 in ((26, 75.95), (38, 77.47), (50, 78.33), (101, 78.94), (152, 79.17))
}
# The scheme of these names, like torchvision://resnet50.
NAMED = 'mmrednet://'
# In front of any path or URL, this makes mmengine read it with this package.
READ_HERE = 'mmrednet::'
STATED_HASH = '#sha256='
# The convention of torch.hub, as in resnet50-0676ba61.pth. A date such as 20210304 is no hash.
HASH_IN_NAME = re.compile(r'-(?!20\d{6})([0-9a-f]{8})\.\w+$')
# Formats that hold no code, or are read without running it.
SAFE_ENDINGS = ('.pdparams', '.safetensors')
# The first version without a known hole in weights_only.
SAFE_TORCH = '2.10'
# PyTorch stores its records uncompressed, so a zip archive that grows when it is unpacked is not its own.
MOST_UNPACKED = 10
# The first bytes of a file in each format, by ending.
FIRST_BYTES = {'.pdparams': rb'\x80', '.safetensors': rb'.{5}\x00{3}\{', '': rb'PK|\x80\x02'}
# The first bytes of files that people take for checkpoints, and what to do about each.
NOT_CHECKPOINTS = {
    rb'\Z': 'it is empty: copy or download it again',
    rb'\s*<': 'it is a web page (HTML) and not a checkpoint: open its URL in a browser, which may need a login',
    rb'version https://git-lfs': 'it is a pointer of Git LFS and not the file itself: run `git lfs pull` in its folder',
    rb'PK': "it has PyTorch's format: rename it to end in .pth",
    rb'.{5}\x00{3}\{': 'it has the format safetensors: rename it to end in .safetensors',
    rb'\x80[\x03-\x05]': "it is a pickle that torch.save did not write: if it has Paddle's format, rename it to end in "
    '.pdparams; otherwise read it with the program that wrote it, and save the parameters with torch.save',
    rb'\x80\x02': "it is a pickle: if it has PyTorch's format, rename it to end in .pth",
    rb'[\t\n\r -~\x80-\xff]{64}': 'it is a text file and not a checkpoint: give the file with the weights',
}
NOT_OURS = 'it is a zip archive that torch.save did not write: save `model.state_dict()` instead'
# What an error's text contains, and what to do about it.
REASONS = {
    'TorchScript': 'it is a TorchScript program, not a state dict: save `model.state_dict()` instead',
    'locating file data.pkl': NOT_OURS,
    'not in a subdirectory': NOT_OURS,
    'deserialize object on': 'its tensors are for a device that is not here: give map_location="cpu"',
    'allocate memory': 'its tensors do not fit into memory, or their sizes are damaged',
}


def missing(source: str) -> bool:
    """Returns whether ``source`` is a path where no file is. URLs are not looked up."""
    return '://' not in source and not os.path.isfile(os.path.expanduser(source.partition(STATED_HASH)[0]))


def load(source: str, map_location: str | None = 'cpu') -> dict:
    """Reads a checkpoint and brings it to mmengine's layout: :func:`read`, then :func:`convert`."""
    return convert(read(source, map_location))[0]


def read(source: str, map_location: str | None = 'cpu') -> dict:
    """Reads a checkpoint and leaves its layout as it is.

    Args:
        source (str): A path, a URL with http or https (see :func:`fetch`), ``mmrednet://rednet50`` (see ``IMAGENET``)
            or another source that mmengine can read, such as ``s3://``. ``#sha256=`` and at least 8 digits at the end
            state the file's SHA-256, which is then checked.
        map_location (str): The device for the tensors of PyTorch's format. Tensors of the other formats are read to
            the CPU. Defaults to ``'cpu'``.

    Returns:
        dict: The argument of :func:`convert`.

    Raises:
        FileNotFoundError: ``source`` is a path where no file is.
        OSError: The file cannot be downloaded or opened.
        ValueError: The file has another SHA-256, is damaged, is no checkpoint, or holds code. Or it is a pickle from a
            URL, and this version of PyTorch can be made to run its code.
        ImportError: The file needs the package safetensors.
    """
    source = str(source).removeprefix(READ_HERE)
    location, stated, sha256 = source.partition(STATED_HASH)
    sha256 = sha256.lower()
    if stated and not re.fullmatch('[0-9a-f]{8,64}', sha256):
        raise ValueError(f'the SHA-256 after {STATED_HASH} must have 8 to 64 hexadecimal digits, but is {sha256!r}')
    if location.startswith(NAMED):
        name = location.removeprefix(NAMED)
        if name not in IMAGENET:
            raise ValueError(f'no public weights are named {name!r}: choose one of {", ".join(IMAGENET)}')
        location = IMAGENET[name].address
    remote = location.startswith(('http://', 'https://'))
    if '://' in location and not remote:
        if stated:
            raise ValueError(f'a SHA-256 can be checked for files and http(s) URLs only, and {source} is neither')
        return CheckpointLoader.load_checkpoint(location, map_location)
    if missing(location):
        raise FileNotFoundError(f'{location} is no file: give the path or URL of a checkpoint')
    name = urlparse(location).path if remote else location
    ending = os.path.splitext(name)[1]
    if ending not in SAFE_ENDINGS:
        _check_torch(location, remote)
    parse = partial(_parse, ending=ending, source=location, map_location=map_location)
    if remote:
        if not sha256 and (in_name := HASH_IN_NAME.search(name)):
            sha256 = in_name[1]
        return fetch(location, sha256, parse)
    path = Path(location).expanduser()
    if sha256:
        check_sha256(path, sha256, location)
    return parse(path)


# This is how mmengine, and so every toolbox, reads the formats that only this package can read. Where several patterns
# match, mmengine takes the greatest as a text: `https?` is after its own `https:`, and `(?` is before the `(\S` of
# object stores.
@CheckpointLoader.register_scheme(
    [
        r'mmrednet:',
        r'https?://[^?#]+\.(pdparams|safetensors)([?#]|$)',
        rf'https?://\S+{STATED_HASH}',
        rf'(?!\S+://).+(\.(pdparams|safetensors)|{STATED_HASH}\w+)$',
    ]
)
def load_from_mmrednet(filename: str, map_location: str | None = 'cpu') -> dict:
    """Reads a checkpoint for mmengine, see :func:`load`."""
    return load(filename, map_location)


def _check_torch(location: str, remote: bool) -> None:
    if torch.__version__ >= SAFE_TORCH:
        return
    risk = (
        f'torch {torch.__version__} can be made to run code by a checkpoint (CVE-2026-24747); torch {SAFE_TORCH} cannot'
    )
    if remote:
        raise ValueError(
            f'{location} was not loaded: {risk}. Upgrade torch, take a .safetensors or .pdparams file, or download the '
            'file yourself and give its path, if you trust its author'
        )
    _warn_once(f'{risk}. Load only checkpoints of people whom you trust, upgrade torch, or take .safetensors files')


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def _parse(path: Path, ending: str, source: str, map_location: str | None) -> dict:
    """Reads a file in the format of ``ending``. The errors name ``source``."""
    try:
        if ending == '.pdparams':
            return dict(pdparams=paddle.read(path))
        if ending == '.safetensors':
            return _read_safetensors(path)
        _check_unpacked_size(path)
        return torch.load(path, map_location=map_location, weights_only=True)
    except (ImportError, PermissionError):
        raise
    except Exception as error:  # a damaged file raises errors of nearly any type
        raise ValueError(
            f'{source} cannot be read, and nothing of it was loaded: {_reason(error, path, ending)}'
        ) from error


def _check_unpacked_size(path: Path) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
        if unpacked > MOST_UNPACKED * path.stat().st_size:
            raise ValueError(f'{unpacked} bytes when unpacked')


def _reason(error: Exception, path: Path, ending: str) -> str:
    """Returns why a file cannot be read, and what to do."""
    text = str(error)
    if isinstance(error, paddle.Refused):
        return printable(f'{text}: do not use it, or get it again')
    if named := re.search(r'GLOBAL (\S+)', text):  # torch's own text gives advice to load without safety
        return (
            f'it holds a whole object of class {printable(named[1])}, not a state dict, and loading it could run code: '
            'save `model.state_dict()` with the program that made it, if you trust that'
        )
    for words, advice in REASONS.items():
        if words in text:
            return advice
    with open(path, 'rb') as file:
        start = file.read(64)
    if not re.match(FIRST_BYTES.get(ending, FIRST_BYTES['']), start, re.DOTALL):
        for pattern, advice in NOT_CHECKPOINTS.items():
            if re.match(pattern, start.ljust(64) if start else start, re.DOTALL):
                return advice
    text = re.sub(r'\[enforce fail at \S+\] \. ', '', text.rpartition('WeightsUnpickler error:')[2])
    lines = [line.strip(' .') for line in text.split('\n') if line.strip() and 'weights_only' not in line]
    cause = printable(': '.join((type(error).__name__, *(line.partition('. ')[0] for line in lines[:1]))))
    return f'it is damaged or incomplete ({cause}): get it again'


def _safetensors():
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f'.safetensors files need the package safetensors ({error}): pip install safetensors'
        ) from error
    return safetensors


def _read_safetensors(path: Path) -> dict:
    with _safetensors().safe_open(path, 'pt') as file:
        meta = json.loads((file.metadata() or {}).get('meta', '{}'))
        return dict(state_dict={name: file.get_tensor(name) for name in file.keys()}, meta=meta)


def save(checkpoint: dict, path: Path) -> list[str]:
    """Writes a checkpoint whole or not at all, in the format of the path's ending.

    Args:
        checkpoint (dict): With ``state_dict`` and ``meta``, see :func:`convert`.
        path (Path): The file to write. An existing file is replaced.

    Returns:
        list: The keys of ``checkpoint`` that the format has no place for. The file lacks them.

    Raises:
        OSError: The file cannot be written.
        ValueError: The ending is that of Paddle's format.
        ImportError: The file needs the package safetensors.
    """
    path = Path(path).expanduser()
    if path.suffix == '.pdparams':
        raise ValueError(f"{path} has the ending of Paddle's format, which is read only: give .pth or .safetensors")
    left_out, data = [], None
    if path.suffix == '.safetensors':
        left_out = [key for key in checkpoint if key not in ('state_dict', 'meta')]
        # In this format, parameters cannot share memory as views do.
        tensors = {
            name: value.clone(memory_format=torch.contiguous_format) for name, value in checkpoint['state_dict'].items()
        }
        metadata = dict(format='pt', meta=json.dumps(checkpoint['meta'], default=_as_json))
        data = _safetensors().torch.save(tensors, metadata)
    try:
        with replacing(path) as part:
            if data is None:
                torch.save(checkpoint, part)
            else:
                part.write_bytes(data)
    # PyTorch raises RuntimeError when the disk is full.
    except (OSError, RuntimeError) as error:
        raise OSError(
            f'{path} could not be written ({one_line(error)}): make room there or give another path'
        ) from error
    return left_out


def _as_json(value):
    """Returns NumPy's arrays and numbers as lists and numbers, and anything else as its text."""
    return value.tolist() if hasattr(value, 'tolist') else str(value)
