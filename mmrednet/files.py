"""Files that are written whole or not at all. It needs the standard library alone."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = '.mmrednet-'  # the beginning of a temporary folder's name


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path. The file that is written there replaces ``path`` at the end.

    The file is synced to the disk before it is renamed. So ``path`` always holds the whole old or the whole new
    content. After an exception, ``path`` is unchanged and no temporary file remains. Other files that are written to
    the temporary path's folder move to the folder of ``path`` first.

    Args:
        path (str or Path): The file to write. Its folder is made if it does not exist.

    Raises:
        OSError: The folder or the file cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path  # a device such as /dev/stdout, or a pipe
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, since a rename is atomic on one file system only.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=TEMPORARY, ignore_cleanup_errors=True) as folder:
            part = Path(folder, path.name)
            yield part
            others = [other for other in Path(folder).iterdir() if other != part]
            for written in (*others, part):
                with written.open('rb') as file:
                    os.fsync(file.fileno())
            for written in (*others, part):
                os.replace(written, path.with_name(written.name))
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f'{path} could not be written ({reason}): make room there or give another path') from error
