"""Errors as text. It needs the standard library alone."""


def one_line(error: BaseException) -> str:
    """Returns an error's text in one line, after its type where the text alone may not explain it."""
    text = '; '.join(line.strip() for line in str(error).splitlines() if line.strip()).replace(':;', ':')
    explains_itself = isinstance(error, ImportError | OSError | ValueError) and text
    return text if explains_itself else f'{type(error).__name__}: {text}'.removesuffix(': ')
