"""Fonts for texts in any language, for what matplotlib draws."""

from contextlib import contextmanager, suppress
from functools import cache

DEFAULT = 'DejaVu Sans'  # matplotlib ships it


@cache
def find_font(text: str) -> tuple[str, str]:
    """Finds an installed font that has glyphs for a text.

    Returns:
        tuple[str, str]: The font's family, and a note for the user about characters that it has no glyphs for, or ''.
        Matplotlib's own font is preferred, then the font that lacks the fewest characters.
    """
    from matplotlib.font_manager import findSystemFonts, fontManager

    characters = {character for character in text if character.isprintable() and not character.isspace()}
    family, missing = DEFAULT, _missing(fontManager.findfont(DEFAULT), characters)
    if not missing:
        return family, ''
    # Matplotlib keeps a list of fonts, which lacks those that were installed later.
    for path in {*findSystemFonts()} - {font.fname for font in fontManager.ttflist}:
        with suppress(Exception):
            fontManager.addfont(path)
    for font in fontManager.ttflist:
        if len(left := _missing(font.fname, characters)) < len(missing):
            family, missing = font.name, left
    if not missing:
        return family, ''
    shown = ''.join(sorted(missing)[:20]) + '...' * (len(missing) > 20)
    return family, (
        f'no installed font has all of {shown}, which are drawn as empty squares: install one that does (for Chinese, '
        'Japanese and Korean on Debian and Ubuntu: apt-get install fonts-noto-cjk)'
    )


def _missing(path: str, characters: set[str]) -> set[str]:
    """Returns the characters that a font file has no glyphs for."""
    from matplotlib.ft2font import FT2Font

    try:
        glyphs = FT2Font(path).get_charmap()
    except (OSError, RuntimeError):  # bitmap fonts, such as those of coloured emoji, and damaged files
        return characters
    return {character for character in characters if ord(character) not in glyphs}


@contextmanager
def using_font(family: str):
    """Lets matplotlib draw texts in a font, and '$' as it is instead of formulas."""
    from matplotlib import rc_context

    settings: dict = dict.fromkeys(('font.sans-serif', 'font.monospace'), [family, DEFAULT])
    with rc_context({**settings, 'font.family': 'sans-serif', 'text.parse_math': False}):
        yield
