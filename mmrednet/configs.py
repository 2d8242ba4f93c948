"""Our configs by name. Nothing outside the standard library is imported here."""

from difflib import get_close_matches
from pathlib import Path

# Links to the checkout's files; in a wheel, copies of them.
MIM = Path(__file__).parent / '.mim'
CONFIGS = MIM / 'configs'


def names() -> list[str]:
    """Returns the names of all configs, such as ``mmdet/faster_rcnn_rednet50_invfpn``."""
    return sorted(path.relative_to(CONFIGS).with_suffix('').as_posix() for path in CONFIGS.glob('mm*/*.py'))


def find(name: str) -> str:
    """Returns the path of a config of the installed package.

    Args:
        name (str): ``mmdet/faster_rcnn_rednet50_invfpn``, with or without the toolbox and ``.py``, or a model's name in
            its metafile, such as ``rednet50_in1k``.

    Raises:
        ValueError: No config has that name.
    """
    known = names()
    short = name.removesuffix('.py').removesuffix('_in1k')
    for full in known:
        if short in (full, full.partition('/')[2]):
            return str(CONFIGS / f'{full}.py')
    stems = {full.partition('/')[2]: full for full in known}
    near = ', '.join(stems[stem] for stem in get_close_matches(short.rpartition('/')[2], stems, 3, 0.5))
    hint = f'do you mean {near}?' if near else '`python -m mmrednet config` lists all'
    raise ValueError(f'no config is named {name!r}: {hint}')
