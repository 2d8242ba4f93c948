"""Fonts for texts in any language, for what matplotlib draws."""

from contextlib import contextmanager
from functools import cache
from pathlib import Path


def _missing(path: str, characters: set[str]) -> set[str]:
    """Returns the characters that a font file has no glyphs for."""
    from matplotlib.ft2font import FT2Font

    try:
        glyphs = FT2Font(path).get_charmap()
    except (OSError, RuntimeError):  # bitmap fonts, such as those of coloured emoji, and damaged files
        return characters
    return {character for character in characters if ord(character) not in glyphs}


@cache
def find_font(text: str) -> tuple[str, str]:
    """Finds an installed font that has glyphs for a text.

    Args:
        text (str): All characters that will be drawn.

    Returns:
        tuple[str, str]: The font's family, and the characters that it has no glyphs for. Matplotlib's own font is
        preferred, then the font that lacks the fewest characters.
    """
    from matplotlib.font_manager import findSystemFonts, fontManager

    default = 'DejaVu Sans'  # matplotlib ships it
    characters = {character for character in text if character.isprintable() and not character.isspace()}
    missing = _missing(fontManager.findfont(default), characters)
    if not missing:
        return default, ''
    # Matplotlib keeps a list of fonts, which lacks those that were installed later.
    for path in {*findSystemFonts()} - {font.fname for font in fontManager.ttflist}:
        try:
            fontManager.addfont(path)
        except Exception:
            continue
    best, lacking = default, missing
    for font in sorted(
        fontManager.ttflist, key=lambda font: (font.style != 'normal', font.weight not in (400, 'normal'))
    ):
        if Path(font.fname).is_file() and len(left := _missing(font.fname, characters)) < len(lacking):
            best, lacking = font.name, left
        if not lacking:
            break
    return best, ''.join(sorted(lacking))


def advise(missing: str) -> str:
    """Returns a line about characters that no installed font has."""
    shown = missing[:20] + '...' * (len(missing) > 20)
    return (
        f'no installed font has all of {shown}, which are drawn as empty squares: install one that does (for Chinese, '
        'Japanese and Korean on Debian and Ubuntu: apt-get install fonts-noto-cjk)'
    )


@contextmanager
def using_font(family: str):
    """Draws texts as they are, without formulas, in a font."""
    from matplotlib import rc_context

    families = [family, 'DejaVu Sans']
    with rc_context(
        {
            'font.family': 'sans-serif',
            'font.sans-serif': families,
            'font.monospace': families,
            'text.parse_math': False,
        }
    ):
        yield
