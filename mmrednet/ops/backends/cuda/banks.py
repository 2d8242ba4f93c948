"""Places rows in shared memory so that threads that read at the same time use different banks."""

from functools import lru_cache

import torch

from .. import Pair
from .arithmetic import round_up
from .specialisation import THREADS, strip_size

LANES = 8  # vectors of 16 bytes that shared memory serves at a time: its 32 banks hold 4 bytes each


@lru_cache(maxsize=1 << 12)
def find_pitches(width: int, lines: int, strips: int, units: int, steps: Pair, dtype: torch.dtype) -> Pair:
    """Returns the distances from row to row and from unit to unit, in elements, at which the fewest threads collide.

    A row has ``width`` elements. A unit has ``lines`` rows, the rows of all its channels. A block has ``strips`` strips
    in a row. ``steps`` are the elements from one strip to the next, and the rows from one row of strips to the next.
    """
    vector = strip_size(dtype)
    lanes = 128 // (vector * dtype.itemsize)
    width, counts = round_up(width, vector), (strips, units, THREADS)
    pads = range(0, vector * lanes, vector) if units > 1 else (0,)
    pitches = ((row, lines * row + pad) for row in range(width, width + 2 * vector + 1, vector) for pad in pads)
    return min(
        pitches,
        key=lambda found: _count_collisions(counts, (steps[0], found[1], steps[1] * found[0]), vector, lanes),
    )


@lru_cache(maxsize=1 << 12)
def find_pixel_pitch(width: int, counts: tuple[int, ...], down: int, rows: int, columns: int, vector: int) -> int:
    """Returns the distance from row to row, in elements, for pixels that lie in memory with all their channels or taps.

    A row has ``width`` elements, and 16 bytes hold ``vector`` elements. ``counts`` are the threads of a strip, the rows
    of a block and the strips of a row. The next thread reads ``down`` rows lower (0: the next vector), the next row
    ``rows`` rows lower, and the next strip ``columns`` elements further right.
    """
    return min(
        range(width, width + LANES * vector, vector),
        key=lambda pitch: _count_collisions(counts, (down * pitch or vector, rows * pitch, columns), vector, LANES),
    )


def _count_collisions(counts: tuple[int, ...], steps: tuple[int, ...], vector: int, lanes: int) -> int:
    """Returns how many vectors one bank has to serve, at most, when the first ``lanes`` threads read together.

    A thread's number is split into digits with the bases ``counts``, the lowest digit first. Each digit moves the
    thread's address by its number of elements in ``steps``.
    """
    addresses = set()  # threads that read the same address do not collide
    for lane in range(lanes):
        address = 0
        for count, step in zip(counts, steps, strict=True):
            lane, digit = divmod(lane, count)
            address += digit * step
        addresses.add(address)
    banks = [address // vector % lanes for address in addresses]
    return max(map(banks.count, banks))
