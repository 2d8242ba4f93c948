"""Plans the launches of tiled.cu, whose kernels compute any problem whose window fits in shared memory."""

from .arithmetic import divide_up, equal_part, round_up
from .banks import LANES, find_pitches
from .blocks import find_launch, shrink
from .launch import ALIGNMENT, Block, Device, Launch
from .problem import Problem, Share
from .specialisation import THREADS, Specialisation

MOST_STRIPS = 16  # strips in a row of a block, at most


def plan(problem: Problem, device: Device) -> Launch | None:
    """Plans a launch, or returns None if shared memory cannot hold the window of one strip."""
    special = problem.specialise('tiled', phase=problem.phase)
    whole = problem.measure(special.constant('STRIP', problem.function))
    strips = _fill_lanes(whole.strips, MOST_STRIPS)
    channels = equal_part(whole.channels, special.constant('CHUNK', problem.function))
    largest = Share(strips, equal_part(whole.rows, THREADS // strips), channels, 1)
    shares = shrink(largest, 1, lambda channels: divide_up(channels, 2))
    return find_launch(problem, special, whole, shares, _even_out, _arrange, device)


def _even_out(whole: Share, share: Share) -> Share:
    return Share(
        min(share.strips, _fill_lanes(whole.strips, share.strips)),
        equal_part(whole.rows, share.rows),
        equal_part(whole.channels, share.channels),
        share.units,
    )


def _fill_lanes(strips: int, at_most: int) -> int:
    """Returns the number of strips in a row of a block. A multiple of ``LANES`` avoids collisions in shared memory.

    So the number is rounded up to one if an eighth of the result is added at most.
    """
    strips = equal_part(strips, at_most)
    filled = round_up(strips, LANES)
    return filled if filled - strips <= filled // 8 else strips


def _arrange(problem: Problem, special: Specialisation, share: Share) -> Block:
    """Places in shared memory the pixels that a share reads: for each unit its channels, row by row."""
    function, dtype = problem.function, problem.dtype
    strip = special.constant('STRIP', function)
    height = problem.count_read(0, share.rows)
    width = special.constant('SHIFT', function) + problem.count_read(1, share.strips * strip)
    pitch, unit_pitch = find_pitches(
        width, share.channels * height, share.strips, share.units, problem.find_steps(strip), dtype
    )
    elements = round_up(share.units * unit_pitch, ALIGNMENT)
    return Block(
        share,
        tile_h=height,
        tile_w=width,
        pitch=pitch,
        channel_pitch=height * pitch,
        plane_pitch=unit_pitch,
        kernel_at=elements,
        shared=elements * dtype.itemsize,
    )
