"""Integer arithmetic for planning launches."""


def divide_up(a: int, b: int) -> int:
    """Returns ``a / b``, rounded up."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """Returns the smallest multiple of ``b`` that is at least ``a``."""
    return divide_up(a, b) * b


def equal_part(total: int, at_most: int) -> int:
    """Returns the size of the parts if ``total`` is cut into the fewest equal parts of at most ``at_most``."""
    return divide_up(total, divide_up(total, at_most))
