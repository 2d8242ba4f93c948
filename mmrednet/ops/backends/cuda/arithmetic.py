"""Arithmetic with whole numbers that every plan of a launch needs."""


def divide_up(a: int, b: int) -> int:
    """Returns ``a / b``, rounded up."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """Returns the smallest multiple of ``b`` that is at least ``a``."""
    return divide_up(a, b) * b


def equal_part(total: int, at_most: int) -> int:
    """Returns the size of the parts when ``total`` is cut into as few equal parts of ``at_most`` as possible."""
    return divide_up(total, divide_up(total, at_most))
