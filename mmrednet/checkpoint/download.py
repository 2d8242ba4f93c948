"""Downloads to the folder of checkpoints that torch.hub and mmengine share, whole and checked or not at all."""

import errno
import hashlib
import os
from contextlib import suppress
from http.client import HTTPException
from logging import WARNING
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import Request, urlopen
from uuid import uuid4

import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import print_log
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

# Seconds without a byte.
TIMEOUT = 60
CHUNK = 1 << 20
# Reasons for which another folder helps.
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


def fetch(address: str, sha256: str = '') -> Path:
    """Returns the copy of a file in ``torch.hub.get_dir()``'s ``checkpoints``, downloaded where there is none.

    Of several processes that run together, the first downloads. A file beside the copy, with ``.address`` at its
    name's end, has the SHA-256 of its address: another run's file of the same name is not taken for it.

    Args:
        address (str): An address with http or https.
        sha256 (str): The beginning of the file's SHA-256, of at least 8 digits. A copy that does not have it is
            downloaded anew. Defaults to ``''``: not checked.

    Raises:
        OSError: The file cannot be downloaded, not wholly, or not written.
        ValueError: ``sha256`` is not the downloaded file's.
    """
    path = Path(torch.hub.get_dir(), 'checkpoints', os.path.basename(urlparse(address).path))
    first = get_rank() == 0
    if not first:
        barrier()
    try:
        fault = _fault(path, address, sha256) if path.is_file() else ''
        if fault:
            print_log(f'{path} {fault}, so it is downloaded anew', 'current', WARNING)
        if fault or not path.is_file():
            _download(address, path, sha256)
    finally:
        # Also after an error: the others then run into it too, and do not wait for ever.
        if first:
            barrier()
    return path


def _fault(path: Path, address: str, sha256: str) -> str:
    """Returns why a copy is not the file that is wanted, if it is not."""
    if sha256:
        return '' if _digest(path).startswith(sha256) else f'has not the SHA-256 {sha256}'
    origin = _origin(path)
    # Others keep their files here, and people.
    known = not origin.is_file() or origin.read_text() == _digest_of_address(address)
    return '' if known else 'is from another address'


def _origin(path: Path) -> Path:
    return path.with_name(f'{path.name}.address')


def _digest_of_address(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()  # addresses can hold keys


def check_sha256(path: Path, sha256: str, source: str) -> None:
    """Raises ValueError where a file's SHA-256 does not begin with ``sha256``."""
    digest = _digest(path)
    if not digest.startswith(sha256):
        raise ValueError(
            f'{source} was not loaded, since its SHA-256 is {digest} and should be {sha256}: the file is damaged or '
            'another one, so get it again from its publisher, or correct the SHA-256'
        )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _download(address: str, path: Path, sha256: str) -> None:
    part = path.with_name(f'{path.name}.{uuid4().hex}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        expected, size = _write(address, part)
        if expected is not None and size != expected:
            raise ConnectionError(f'{size} of {expected} bytes arrived')
        check_sha256(part, sha256, address)
        part.replace(path)
        _origin(path).write_text(_digest_of_address(address))
    except (OSError, HTTPException) as error:
        if getattr(error, 'errno', None) in OF_THE_DISK:
            remedy = f'make room in {path.parent}, or set TORCH_HOME to a folder on another disk'
        else:
            remedy = (
                'look at the address and the network and start again, or download it by other means and give its path'
            )
        raise OSError(f'{address} could not be downloaded to {path} ({error}): {remedy}') from error
    finally:
        with suppress(OSError):
            part.unlink()


def _write(address: str, part: Path) -> tuple[int | None, int]:
    """Returns how many bytes the server announced, if it did, and how many came."""
    columns = TextColumn('{task.description}', markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    request = Request(address, headers={'User-Agent': 'mmrednet'})
    print_log(f'Downloads {address}', 'current')
    with urlopen(request, timeout=TIMEOUT) as response, open(part, 'xb') as file:
        length = response.headers.get('Content-Length')
        total = None if length is None else int(length)
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
            task = progress.add_task(os.path.basename(address), total=total)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
        return total, file.tell()
