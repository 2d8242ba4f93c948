"""The checkpoint from which a run is resumed."""

import re
from logging import WARNING
from os.path import isfile
from pathlib import Path

from mmengine.logging import print_log

from ..checkpoint import read


def find_checkpoint(folder: str, template: str = 'epoch_{}.pth') -> str | None:
    """Returns the newest checkpoint of a run that can be read, and warns about each that cannot.

    The first choice is the checkpoint that the file ``last_checkpoint`` names. A file of that name in ``folder`` is
    preferred to the path itself, since the folder may have been moved or copied. Next come the earlier checkpoints, the
    newest first.

    Args:
        folder (str): The run's folder (``work_dir``).
        template (str): Names of the checkpoints, with ``{}`` for the epoch or iteration. Defaults to
            ``'epoch_{}.pth'``.

    Returns:
        str or None: A path, or a URL in ``last_checkpoint``, which is not checked. None if the run has no checkpoint
        yet.

    Raises:
        FileNotFoundError: The run had a checkpoint, but none can be read.
    """
    last = _read_last(Path(folder, 'last_checkpoint'))
    if '://' in last:
        return last
    candidates = _list_candidates(Path(folder), last, template)
    for path in candidates:
        try:
            read(str(path))
        except (OSError, ValueError) as error:
            print_log(f'resuming skips the checkpoint {path}: {error}', logger='current', level=WARNING)
        else:
            return str(path)
    if not last and not candidates:
        return None
    named = f'last_checkpoint there names {last!r}' if last else 'last_checkpoint is not there or empty'
    raise FileNotFoundError(
        f'{folder} has no checkpoint that can be resumed ({named}; {len(candidates)} files were tried): name one with '
        f'--resume PATH (in mmseg: --resume with load_from), or delete last_checkpoint and {template.format("*")} in '
        'this folder to start from the beginning'
    )


def _read_last(file: Path) -> str:
    return file.read_text(errors='replace').strip('\0 \n') if file.is_file() else ''


def _list_candidates(folder: Path, last: str, template: str) -> list[Path]:
    """Returns the checkpoints to try, the best choice first."""
    # A hook with `out_dir` saves to another folder.
    folders = [folder, Path(last).parent] if last else [folder]
    first = [path for parent in folders if isfile(path := parent / Path(last).name)][:1]
    pattern = re.compile(re.escape(template).replace(r'\{\}', r'(\d+)'))
    for parent in folders:
        steps = {int(match[1]): file for file in parent.glob('*') if (match := pattern.fullmatch(file.name))}
        if steps:
            break
    # Files with a higher number come from an earlier run in the same folder.
    limit = pattern.fullmatch(Path(last).name)
    before = [steps[step] for step in sorted(steps, reverse=True) if limit is None or step <= int(limit[1])]
    return first + [path for path in before if path not in first]
