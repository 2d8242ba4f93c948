"""Reading checkpoints from files, addresses and public names, in three formats, and writing them in two.

| ending | format |
| --- | --- |
| ``.pdparams`` | Paddle's, read only: :mod:`mmrednet.checkpoint.paddle` |
| ``.safetensors`` | safetensors, with ``meta`` as JSON in the file's own metadata |
| any other | PyTorch's, loaded with ``weights_only`` |
"""

import json
import os
import re
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import torch
from mmengine.runner import CheckpointLoader

from .. import patches  # noqa: F401  (names what mmengine's checkpoints hold as safe)
from . import paddle
from .download import check_sha256, fetch
from .layout import convert


class PublicWeights(NamedTuple):
    """Weights that others publish: the file's address, and the top-1 accuracy that its publisher states."""

    address: str
    top1: float


# PaddleClas' for ImageNet, which it says it converted from the authors'. It states no hash.
PADDLE = 'https://paddle-imagenet-models-name.bj.bcebos.com/dygraph'
IMAGENET = {
    f'rednet{depth}': PublicWeights(f'{PADDLE}/RedNet{depth}_pretrained.pdparams', top1)
    for depth, top1 in ((26, 75.95), (38, 77.47), (50, 78.33), (101, 78.94), (152, 79.17))
}
# The scheme of these names, as torchvision://resnet50 names torchvision's.
NAMED = 'mmrednet://'
# Before any path or address: has mmengine read it with this package.
READ_HERE = 'mmrednet::'
STATED_HASH = '#sha256='
# torch.hub's convention, as in resnet50-0676ba61.pth; a date is none.
HASH_IN_NAME = re.compile(r'-(?!20\d{6})([0-9a-f]{8})\.\w+$')
# Formats that hold no code, or are read without running it.
SAFE_ENDINGS = ('.pdparams', '.safetensors')
# The first in which no hole of weights_only is known.
SAFE_TORCH = '2.10'


def missing(source: str) -> bool:
    """Returns whether ``source`` is a path where no file is. Addresses are not asked."""
    return '://' not in source and not os.path.isfile(os.path.expanduser(source.partition(STATED_HASH)[0]))


def load(source: str, map_location: str | None = 'cpu') -> dict:
    """Reads a checkpoint and brings it to mmengine's layout: :func:`read`, then :func:`convert`."""
    return convert(read(source, map_location))[0]


def read(source: str, map_location: str | None = 'cpu') -> dict:
    """Reads a checkpoint in the layout that it has.

    Args:
        source (str): A path, an address with http or https (which :func:`fetch` keeps), ``mmrednet://rednet50`` (see
            ``IMAGENET``) or whatever else mmengine knows, such as ``s3://``. ``#sha256=`` and at least 8 digits at its
            end state the file's SHA-256, which is then checked.
        map_location (str): Where PyTorch's format puts tensors; the others are read to the CPU. Defaults to ``'cpu'``.

    Returns:
        dict: What :func:`convert` takes.

    Raises:
        FileNotFoundError: ``source`` is a path where no file is.
        OSError: The file cannot be downloaded.
        ValueError: The file has not the SHA-256 that was stated, is damaged or not a checkpoint, or holds code; or it
            is a pickle from an address, and this version of PyTorch could run its code.
        ImportError: The file needs the package safetensors.
    """
    source = str(source).removeprefix(READ_HERE)
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
            raise ValueError(f'a SHA-256 is checked of files and of http(s) addresses only, and {source} is neither')
        return CheckpointLoader.load_checkpoint(location, map_location)
    if missing(location):
        raise FileNotFoundError(f'{location} is no file: give the path or address of a checkpoint')
    name = urlparse(location).path if remote else location
    ending = os.path.splitext(name)[1]
    if ending not in SAFE_ENDINGS:
        _ask_for_safe_torch(location, remote)
    sha256 = sha256.lower()
    if remote:
        if not sha256 and (in_name := HASH_IN_NAME.search(name)):
            sha256 = in_name[1]
        path = fetch(location, sha256)
    else:
        path = Path(location).expanduser()
        if sha256:
            check_sha256(path, sha256, location)
    try:
        if ending == '.pdparams':
            return dict(pdparams=paddle.read(path))
        if ending == '.safetensors':
            return _read_safetensors(path)
        return torch.load(path, map_location=map_location, weights_only=True)
    except ImportError:
        raise
    # A damaged file raises nearly anything.
    except Exception as error:
        remedy = f'delete the downloaded copy {path} and start again' if remote else 'copy or download it again'
        raise ValueError(
            f'nothing was loaded of {location}, which cannot be read ({_reason(error)}): if it is incomplete, '
            f"{remedy}, if its ending is not its format's (.pdparams, .safetensors or .pth), rename it, if it "
            'holds code, do not use it'
        ) from error


# How mmengine, and with it every toolbox, reads what only this package can. Where several patterns match, mmengine
# takes the greatest as a text: `https?` is after its own `https:`, and `(?` before the `(\S` of object stores.
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


def _ask_for_safe_torch(location: str, remote: bool) -> None:
    if torch.__version__ >= SAFE_TORCH:
        return
    risk = (
        f'torch {torch.__version__} can be made to run code by a checkpoint (CVE-2026-24747); torch {SAFE_TORCH} cannot'
    )
    if remote:
        raise ValueError(
            f'{location} was not loaded: {risk}. Upgrade torch, take a .safetensors or .pdparams file, or download the '
            'file yourself and give its path, if you trust who made it'
        )
    _warn_once(f'{risk}. Load checkpoints of people whom you trust, upgrade torch, or take .safetensors files')


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def _reason(error: Exception) -> str:
    # PyTorch's own text begins and ends with advice to load without safety.
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and 'weights_only' not in line]
    return ': '.join([type(error).__name__, *(line.partition('. Please')[0].rstrip('.') for line in lines[:1])])


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
    """Writes a checkpoint, in the format of the path's ending, so that ``path`` is never half written.

    Args:
        checkpoint (dict): With ``state_dict`` and ``meta``, see :func:`convert`.
        path (Path): The file; one that exists is replaced.

    Returns:
        list: What the format has no place for, and the file therefore lacks.

    Raises:
        OSError: The file cannot be written.
        ValueError: The ending is that of Paddle's format.
        ImportError: The file needs the package safetensors.
    """
    if path.suffix == '.pdparams':
        raise ValueError(f"{path} has the ending of Paddle's format, which is read only: give .pth or .safetensors")
    left_out, data = [], None
    if path.suffix == '.safetensors':
        left_out = [key for key in checkpoint if key not in ('state_dict', 'meta')]
        # Parameters that share memory, as views do, have each its own in this format.
        tensors = {
            name: value.clone(memory_format=torch.contiguous_format) for name, value in checkpoint['state_dict'].items()
        }
        metadata = dict(format='pt', meta=json.dumps(checkpoint['meta'], default=_as_json))
        data = _safetensors().torch.save(tensors, metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / path.name
            if data is None:
                torch.save(checkpoint, part)
            else:
                part.write_bytes(data)
            part.replace(path)
    # On a full disk PyTorch raises RuntimeError.
    except (OSError, RuntimeError) as error:
        raise OSError(
            f'{path} could not be written ({_reason(error)}): make room there or give another path'
        ) from error
    return left_out


def _as_json(value):
    """Returns NumPy's arrays and numbers as lists and numbers, and anything else as its text."""
    return value.tolist() if hasattr(value, 'tolist') else str(value)
