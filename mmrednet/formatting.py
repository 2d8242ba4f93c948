"""Tables and records as text. It needs the standard library alone."""

import json
from collections.abc import Mapping, Sequence

FORMATS = ('markdown', 'json')


def rounded(value: float) -> str:
    """Returns a number with three significant digits, or from 100 on as an integer."""
    return f'{value:.0f}' if value >= 100 else f'{value:#.3g}'


def markdown_list(items: Mapping[str, object]) -> str:
    """Returns a Markdown list with one line for each name and value."""
    return '\n'.join(f'- {name}: {value}' for name, value in items.items())


def markdown_table(header: Sequence[str], rows: Sequence[Sequence], numbers: Sequence[int] = ()) -> str:
    """Returns a Markdown table with padded columns. Those with an index in ``numbers`` are aligned right."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = [
        [cell.rjust(w) if i in numbers else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    lines.insert(1, ['-' * (w - 1) + ':' if i in numbers else '-' * w for i, w in enumerate(widths)])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def format_records(records: Sequence[Mapping], markdown: str, style: str, about: Mapping[str, str] = {}) -> str:
    """Returns the facts ``about`` records, and then ``markdown`` or (style 'json') the records as 'results'."""
    if style not in FORMATS:
        raise ValueError(f'format must be one of {FORMATS}, but is {style!r}')
    if style == 'json':
        return json.dumps({**about, 'results': records} if about else records, indent=2)
    return f'{markdown_list(about)}\n\n{markdown}'.strip()
