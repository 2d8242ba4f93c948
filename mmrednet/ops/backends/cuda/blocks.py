"""Chooses the size of blocks: as large as threads and shared memory allow, but enough blocks for a busy GPU."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from .arithmetic import divide_up
from .launch import Block, Counts, Device, Launch
from .problem import Problem, Share
from .specialisation import Specialisation

FEW_ROWS = 4  # a block with fewer rows reads more pixels of its neighbours than of its own
BLOCKS = 2  # at least so many for each multiprocessor: one computes while the other waits for memory


def shrink(share: Share, least: int, take_channels: Callable[[int], int]) -> Iterator[Share]:
    """Yields a share and then smaller ones, the last with one strip of ``least`` channels.

    First the rows shrink to ``FEW_ROWS``. Then ``take_channels`` returns each next smaller number of channels. Then the
    rows shrink to one, and the strips last.
    """
    yield share
    while share[:3] != (1, 1, least):
        if share.rows > FEW_ROWS or share.rows > 1 and share.channels == least:
            share = share._replace(rows=share.rows - 1)
        elif share.channels > least:
            share = share._replace(channels=take_channels(share.channels))
        else:
            share = share._replace(strips=share.strips - 1)
        yield share


def find_launch(
    problem: Problem,
    special: Specialisation,
    whole: Share,
    shares: Iterable[Share],
    even_out: Callable[[Share, Share], Share],
    arrange: Callable[[Problem, Specialisation, Share], Block],
    device: Device,
) -> Launch | None:
    """Returns a launch of the whole work, or None if shared memory is too small for every share.

    ``shares`` are those that a block has threads and registers for, the largest first. ``even_out`` makes a share
    smaller if the number of blocks stays the same. ``arrange`` places a share in shared memory.
    """
    place = partial(arrange, problem, special)
    fitting = next((share for share in shares if place(share).shared <= device.shared), None)
    if fitting is None:
        return None
    share = even_out(whole, fitting)
    while share.rows > FEW_ROWS and Counts.of(problem, whole, share).blocks < BLOCKS * device.multiprocessors:
        share = share._replace(rows=divide_up(share.rows, 2))
    return Launch.of(problem, special, whole, _add_units(problem, whole, share, place, device), device)


def _add_units(
    problem: Problem, whole: Share, share: Share, arrange: Callable[[Share], Block], device: Device
) -> Block:
    """Returns a block of several units if a block holds a whole image and enough blocks remain for a busy GPU."""
    counts, block = Counts.of(problem, whole, share), arrange(share)
    if counts.tiles_x * counts.tiles_y > 1:
        return block
    spare = counts.units // max(1, BLOCKS * device.multiprocessors)
    most = min(block.most_strips // (share.strips * share.rows), spare)
    fuller = (arrange(share._replace(units=units)) for units in range(most, 1, -1))
    return next((candidate for candidate in fuller if candidate.shared <= device.shared), block)
