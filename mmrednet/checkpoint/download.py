"""Downloads checkpoints, and keeps a file only if it can be read."""

import hashlib
import socket
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import print_log

from ..files import replacing

# A download fails after this many seconds without data. torch.hub itself sets no limit.
TIMEOUT = 60
NETWORK_ERRORS = (URLError, ConnectionError, TimeoutError, HTTPException)


def fetch(url: str, sha256: str, read: Callable[[Path], dict]) -> dict:
    """Reads a file from a URL, or its copy in the folder of checkpoints of ``torch.hub``.

    A copy is kept only if it has the SHA-256 and ``read`` raises no error. In a distributed run the first process
    downloads, and the others wait for it.
    """
    # Different URLs can have the same file name. The name contains a hash of the URL, since a URL can hold a secret.
    name = f'{hashlib.sha256(url.encode()).hexdigest()[:16]}-{PurePosixPath(urlparse(url).path).name[-100:]}'
    path = Path(torch.hub.get_dir(), 'checkpoints', name)
    first = get_rank() == 0
    if not first:
        barrier()
    try:
        if path.is_file():
            with suppress(ValueError):  # the copy is damaged, or the publisher has replaced the file
                check_sha256(path, sha256, url)
                return read(path)
        return _download(url, path, sha256, read)
    finally:
        # Also after an error: the other processes would wait for ever.
        if first:
            barrier()


def _download(url: str, path: Path, sha256: str, read: Callable[[Path], dict]) -> dict:
    print_log(f'Downloading {url} to {path}', 'current')
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with replacing(path) as part:
            torch.hub.download_url_to_file(url, str(part))
            check_sha256(part, sha256, url)
            return read(part)
    except (OSError, HTTPException) as error:
        cause = error.__cause__ or error  # `replacing` reports a network error as a disk error
        if isinstance(cause, NETWORK_ERRORS):
            remedy = 'check the URL and the network and start again, or download the file elsewhere and give its path'
        else:
            remedy = f'make room in {path.parent} and make it writable, or set TORCH_HOME to another folder'
        raise OSError(f'{url} could not be downloaded ({cause}): {remedy}') from cause
    finally:
        socket.setdefaulttimeout(timeout)


def check_sha256(path: Path, sha256: str, source: str) -> None:
    """Raises ValueError if a file's SHA-256 does not begin with ``sha256``. With ``''``, nothing is checked."""
    if not sha256:
        return
    actual = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            actual.update(chunk)
    if not actual.hexdigest().startswith(sha256):
        raise ValueError(
            f'{source} was not loaded, since its SHA-256 is {actual.hexdigest()} and should be {sha256}: the file is '
            'damaged or another one, so get it again from its publisher, or correct the SHA-256'
        )
