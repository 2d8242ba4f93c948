"""Downloads of checkpoints, which are kept only if they can be read."""

import hashlib
import socket
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import print_log

from ..files import replacing

# Seconds without a byte after which a server counts as dead. torch.hub has no limit of its own.
TIMEOUT = 60
CHUNK = 1 << 20
T = TypeVar('T')


def fetch(url: str, sha256: str, read: Callable[[Path], T]) -> T:
    """Reads a file from a URL, or its copy from an earlier call in the folder of checkpoints of ``torch.hub``.

    The name of the copy begins with a hash of the whole URL, since different URLs can have the same file name. In a
    distributed run the first process downloads, and the others wait for it.

    Args:
        url (str): A URL with http or https.
        sha256 (str): The first digits of the file's SHA-256. A copy with another one is downloaded again. ``''``: the
            SHA-256 is not checked.
        read (Callable): Reads the file. The file is kept only if this raises no error.

    Returns:
        T: What ``read`` returns.

    Raises:
        OSError: The file cannot be downloaded or written.
        ValueError: The file has another SHA-256, or ``read`` raises it.
    """
    # The URL itself is no part of the name, since it can hold a secret.
    name = f'{hashlib.sha256(url.encode()).hexdigest()[:16]}-{PurePosixPath(urlparse(url).path).name[-100:]}'
    path = Path(torch.hub.get_dir(), 'checkpoints', name)
    first = get_rank() == 0
    if not first:
        barrier()
    try:
        if path.is_file() and (not sha256 or digest(path).startswith(sha256)):
            with suppress(ValueError):  # the disk has damaged it
                return read(path)
        return _download(url, path, sha256, read)
    finally:
        # After an error as well, since the others would wait for ever.
        if first:
            barrier()


def _download(url: str, path: Path, sha256: str, read: Callable[[Path], T]) -> T:
    print_log(f'Downloading {url} to {path}', 'current')
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with replacing(path) as part:
            torch.hub.download_url_to_file(url, str(part))
            check_sha256(part, sha256, url)
            return read(part)
    except (URLError, ConnectionError, TimeoutError, HTTPException) as error:
        raise OSError(
            f'{url} could not be downloaded ({error}): check the URL and the network and start again, or download the '
            'file by other means and give its path'
        ) from error
    except OSError as error:
        raise OSError(
            f'{url} could not be downloaded to {path} ({error}): make room in {path.parent} and make sure that it can '
            'be written, or set TORCH_HOME to another folder'
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def check_sha256(path: Path, sha256: str, source: str) -> None:
    """Raises ValueError where a file's SHA-256 does not begin with ``sha256``."""
    actual = digest(path)
    if not actual.startswith(sha256):
        raise ValueError(
            f'{source} was not loaded, since its SHA-256 is {actual} and should be {sha256}: the file is damaged or '
            'another one, so get it again from its publisher, or correct the SHA-256'
        )


def digest(path: Path) -> str:
    """Returns a file's SHA-256 in hexadecimal digits."""
    value = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(CHUNK):
            value.update(chunk)
    return value.hexdigest()
