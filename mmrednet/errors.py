"""Errors as text. It needs the standard library alone."""


def printable(text: object, length: int = 300) -> str:
    """Returns text from a file so that a terminal can print it: control characters escaped, and not too long."""
    text = ''.join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text)[: length + 1])
    return text if len(text) <= length else f'{text[:length]}...'


def one_line(error: BaseException) -> str:
    """Returns an error's text in one line. If the text alone may not explain the error, its type comes first."""
    text = '; '.join(line.strip() for line in str(error).splitlines() if line.strip()).replace(':;', ':')
    text = printable(text, 4000)
    explains_itself = isinstance(error, ImportError | OSError | ValueError) and text
    return text if explains_itself else f'{type(error).__name__}: {text}'.removesuffix(': ')
