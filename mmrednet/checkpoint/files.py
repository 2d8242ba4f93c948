"""Reads checkpoints from files, URLs and public names in three formats, and writes two of them.

The ending of the name selects the format. ``.pdparams`` is Paddle's format, which is not written. ``.safetensors`` is
safetensors, with ``meta`` as JSON in the file's metadata. Any other ending is PyTorch's format.
"""

import io
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
from ..errors import printable
from ..files import replacing
from . import paddle
from .download import check_sha256, fetch
from .layout import convert


class PublicWeights(NamedTuple):
    """Weights that others publish: the URL of the file, and the top-1 accuracy that the publisher states."""

    address: str
    top1: float


# PaddleClas' weights for ImageNet. It states that they are converted from the authors' weights, and gives no hashes.
PADDLE = 'https://paddle-imagenet-models-name.bj.bcebos.com/dygraph'
IMAGENET = {
    f'rednet{depth}': PublicWeights(f'{PADDLE}/RedNet{depth}_pretrained.pdparams', top1)
    for depth, top1 in ((26, 75.95), (38, 77.47), (50, 78.33), (101, 78.94), (152, 79.17))
}
# The scheme of these names, like torchvision://resnet50.
NAMED = 'mmrednet://'
# With this prefix, mmengine reads any path or URL with this package.
OUR_READER = 'mmrednet::'
STATED_HASH = '#sha256='
# torch.hub's file names contain the beginning of the SHA-256: resnet50-0676ba61.pth. A date as in -20210304 is no hash.
HASH_IN_NAME = re.compile(r'-(?!20\d{6})([0-9a-f]{8})\.\w+$')
# Formats that hold no code, or are read without running it.
SAFE_ENDINGS = ('.pdparams', '.safetensors')
# The first version without a known vulnerability of weights_only.
SAFE_TORCH = '2.10'
# PyTorch does not compress its records. So torch.save did not write a zip archive that grows this many times.
MOST_UNPACKED = 10
PICKLE = (
    "it is a pickle: rename it to end in .pdparams if it has Paddle's format, or in .pth if torch.save wrote it; "
    'otherwise read it with the program that wrote it, and save the parameters with torch.save'
)
# The first bytes of a file, the endings that fit them, and the advice for a file with another ending.
CONTENTS = (
    (rb'.{5}\x00{3}\{', '.safetensors', 'it has the format safetensors: rename it to end in .safetensors'),
    (rb'PK', '.pth', "it has PyTorch's format: rename it to end in .pth"),
    (rb'\x80\x02', '.pth .pdparams', PICKLE),
    (rb'\x80[\x03-\x05]', '.pdparams', PICKLE),
    (rb' {64}', '', 'it is empty: copy or download it again'),
    (rb'\s*<', '', 'it is a web page (HTML) and not a checkpoint: open its URL in a browser, which may need a login'),
    (rb'version https://git-lfs', '', 'it is a pointer of Git LFS, not the file: run `git lfs pull` in its folder'),
    (rb'[\t\n\r -~\x80-\xff]{64}', '', 'it is a text file and not a checkpoint: give the file with the weights'),
)
# Patterns in PyTorch's errors, and our advice. PyTorch's own advice is to load without safety.
REASONS = {
    r'GLOBAL (\S+)': 'it holds a whole object of class {}, not a state dict, and loading it could run code: save '
    '`model.state_dict()` with the program that made it, if you trust that',
    'TorchScript': 'it is a TorchScript program, not a state dict: save `model.state_dict()` instead',
    'locating file data.pkl|not in a subdirectory': 'it is a zip archive that torch.save did not write: save '
    '`model.state_dict()` instead',
    'deserialize object on': 'its tensors are for a device that is not here: give map_location="cpu"',
    'allocate memory': 'its tensors do not fit into memory, or their sizes are damaged',
}


def is_missing_file(source: str) -> bool:
    """Returns whether ``source`` is a path without a file. URLs are not checked."""
    return '://' not in source and not os.path.isfile(os.path.expanduser(source.partition(STATED_HASH)[0]))


def load(source: str, map_location: str | None = 'cpu') -> dict:
    """Reads a checkpoint and brings it to mmengine's layout.

    Args:
        source (str): A path, a URL with http or https, ``mmrednet://rednet50`` (see ``IMAGENET``) or another source
            that mmengine can read, such as ``s3://``. ``#sha256=`` and at least 8 digits at the end state the file's
            SHA-256, which is then checked.
        map_location (str): The device for the tensors of PyTorch's format. Tensors of the other formats are read to
            the CPU. Defaults to ``'cpu'``.

    Returns:
        dict: The checkpoint with ``state_dict`` and ``meta``, see :func:`convert`.

    Raises:
        FileNotFoundError: ``source`` is a path without a file.
        OSError: The file cannot be downloaded or opened.
        ValueError: The file has another SHA-256, is damaged, is no checkpoint, or holds code. Or it is a pickle from a
            URL, and this version of PyTorch can be made to run its code.
        ImportError: The file needs the package safetensors.
    """
    return convert(read(source, map_location))[0]


def read(source: str, map_location: str | None = 'cpu') -> dict:
    """Reads a checkpoint as :func:`load` does, without converting its layout."""
    source = str(source).removeprefix(OUR_READER)
    location, stated, sha256 = source.partition(STATED_HASH)
    if stated and not re.fullmatch('[0-9a-fA-F]{8,64}', sha256):
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
    if is_missing_file(location):
        raise FileNotFoundError(f'{location} is not a file: give the path or URL of a checkpoint')
    name = urlparse(location).path if remote else location
    ending = os.path.splitext(name)[1]
    if ending not in SAFE_ENDINGS:
        ending = '.pth'
        _check_torch(location, remote)
    parse = partial(_parse, ending=ending, source=location, map_location=map_location)
    if remote:
        in_name = HASH_IN_NAME.search(name)
        return fetch(location, sha256.lower() or (in_name[1] if in_name else ''), parse)
    path = Path(location).expanduser()
    check_sha256(path, sha256.lower(), location)
    return parse(path)


# mmengine, and so every toolbox, reads sources that match these patterns with this function. If several patterns match,
# mmengine uses the last one in the order of characters: `https?` is after its own `https:`, and `(?` is before the
# `(\S` of object stores.
@CheckpointLoader.register_scheme(
    [
        r'mmrednet:',
        r'https?://[^?#]+\.(pdparams|safetensors)([?#]|$)',
        rf'https?://\S+{STATED_HASH}',
        rf'(?!\S+://).+(\.(pdparams|safetensors)|{STATED_HASH}\w+)$',
    ]
)
def load_from_mmrednet(filename: str, map_location: str | None = 'cpu') -> dict:
    """Reads a checkpoint for mmengine, whose log shows the end of this function's name."""
    return load(filename, map_location)


def _check_torch(location: str, remote: bool) -> None:
    if torch.__version__ >= SAFE_TORCH:
        return
    risk = (
        f'torch {torch.__version__} can be made to run code by a checkpoint (CVE-2026-24747), and torch {SAFE_TORCH} '
        'cannot. Upgrade torch, take .safetensors files, or'
    )
    if remote:
        raise ValueError(f'{location} was not loaded: {risk} download it and give its path, if you trust its author')
    _warn_once(f'{risk} load only checkpoints of people whom you trust')


_warn_once = cache(partial(warnings.warn, stacklevel=3))  # the warning is reported for `load`


def _parse(path: Path, ending: str, source: str, map_location: str | None) -> dict:
    """Reads a file in the format of ``ending``. The errors name ``source``."""
    try:
        if ending == '.pdparams':
            return dict(pdparams=paddle.read(path))
        if ending == '.safetensors':
            with _safetensors().safe_open(path, 'pt') as file:
                meta = json.loads((file.metadata() or {}).get('meta', '{}'))
                return dict(state_dict={name: file.get_tensor(name) for name in file.keys()}, meta=meta)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(record.file_size for record in archive.infolist())
            if unpacked > MOST_UNPACKED * path.stat().st_size:
                raise ValueError(f'{unpacked} bytes when unpacked')
        return torch.load(path, map_location=map_location, weights_only=True)
    except (ImportError, PermissionError):
        raise
    except Exception as error:  # a damaged file raises errors of nearly any type
        reason = _reason(error, path, ending)
        raise ValueError(f'{source} cannot be read, and nothing of it was loaded: {reason}') from error


def _reason(error: Exception, path: Path, ending: str) -> str:
    """Returns why a file cannot be read, and what to do."""
    text = str(error)
    if isinstance(error, paddle.Refused):
        return printable(f'{text}: do not use it, or get it again')
    for words, advice in REASONS.items():
        if found := re.search(words, text):
            return advice.format(*map(printable, found.groups()))
    with open(path, 'rb') as file:
        start = file.read(64).ljust(64)
    for pattern, endings, advice in CONTENTS:
        if re.match(pattern, start, re.DOTALL):
            if ending in endings:
                break
            return advice
    # torch's text begins with advice, and the lines after the first give advice again.
    cause = text.rpartition('WeightsUnpickler error:')[2].strip().partition('\n')[0]
    cause = printable(f'{type(error).__name__}: {cause}'.removesuffix(': '))
    return f'it is damaged or incomplete ({cause}): get it again'


def _safetensors():
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f'.safetensors files need the package safetensors ({error}): pip install safetensors'
        ) from error
    return safetensors


def save(checkpoint: dict, path: Path) -> list[str]:
    """Writes a checkpoint whole or not at all, in the format of the path's ending.

    Args:
        checkpoint (dict): With ``state_dict`` and ``meta``, see :func:`convert`.
        path (Path): The file to write. An existing file is replaced.

    Returns:
        list: The keys of ``checkpoint`` that the format cannot hold. They are not in the file.

    Raises:
        OSError: The file cannot be written.
        ValueError: The ending is that of Paddle's format.
        ImportError: The file needs the package safetensors.
    """
    path, left_out = Path(path).expanduser(), []
    if path.suffix == '.pdparams':
        raise ValueError(f"{path} has the ending of Paddle's format, which is read only: give .pth or .safetensors")
    if path.suffix == '.safetensors':
        left_out = [key for key in checkpoint if key not in ('state_dict', 'meta')]
        # In this format, parameters cannot share memory as views do.
        tensors = {
            name: value.clone(memory_format=torch.contiguous_format) for name, value in checkpoint['state_dict'].items()
        }
        # NumPy arrays become lists, NumPy numbers become numbers, and other objects become text.
        meta = json.dumps(checkpoint['meta'], default=lambda it: it.tolist() if hasattr(it, 'tolist') else str(it))
        data = _safetensors().torch.save(tensors, dict(format='pt', meta=meta))
    else:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        data = buffer.getvalue()
    with replacing(path) as part:
        part.write_bytes(data)
    return left_out
