"""Plans the launches of pixels.cu, for channels-last images: each pixel lies in memory with all its channels.

A strip has a thread for each vector of its channels, or in grad_kernel a thread for each row of the window.
"""

from .arithmetic import equal_part, round_up
from .banks import LANES, find_pixel_pitch
from .blocks import find_launch, shrink
from .launch import ALIGNMENT, Block, Device, Launch
from .problem import Problem, Share
from .specialisation import CHUNK, THREADS, Specialisation, vector_size

STAGED_STRIPS = {2: 32, 4: 24, 8: 24}  # most strips whose taps a block stages at once, by the bytes of an element


def plan(problem: Problem, device: Device) -> Launch | None:
    """Plans a launch, or returns None if images are not channels-last or shared memory cannot hold a strip."""
    if not problem.is_channels_last:
        return None
    special = problem.specialise('pixels')
    vector, whole = vector_size(problem.dtype), problem.measure(special.constant('STRIP', problem.function))
    shares = shrink(_find_largest(problem, whole), vector, lambda channels: channels - vector)
    return find_launch(problem, special, whole, shares, _even_out, _arrange, device)


def _find_largest(problem: Problem, whole: Share) -> Share:
    """Returns the largest share that a block has threads and registers for."""
    channels = round_up(equal_part(whole.channels, CHUNK), vector_size(problem.dtype))
    most_strips = _count_strips(problem, channels)
    rows = equal_part(whole.rows, min(LANES, most_strips))
    return Share(equal_part(whole.strips, most_strips // rows), rows, channels, 1)


def _even_out(whole: Share, share: Share) -> Share:
    return share._replace(strips=equal_part(whole.strips, share.strips), rows=equal_part(whole.rows, share.rows))


def _count_threads(problem: Problem, channels: int) -> int:
    """Returns the threads of a strip."""
    return problem.kernel_size[0] if problem.function == 'grad_kernel' else channels // vector_size(problem.dtype)


def _count_strips(problem: Problem, channels: int) -> int:
    """Returns the largest number of strips of a block."""
    most = THREADS // _count_threads(problem, channels)
    return min(most, STAGED_STRIPS[problem.dtype.itemsize]) if problem.function == 'forward' else most


def _arrange(problem: Problem, special: Specialisation, share: Share) -> Block:
    """Places in shared memory the pixels that a share reads, with their channels, and then the taps of each pixel.

    In grad_kernel, the pixels are those of x and then those of y. In grad_input, there are two rows of taps: one is
    used while the next one is copied.
    """
    function, vector = problem.function, vector_size(problem.dtype)
    strip, threads = special.constant('STRIP', function), _count_threads(problem, share.channels)
    height, width = problem.count_read(0, share.rows), problem.count_read(1, share.strips * strip)
    columns, rows = problem.find_steps(strip)
    down = problem.dilation[0] if function == 'grad_kernel' else 0
    counts = threads, share.rows, share.strips
    pitch = find_pixel_pitch(width * share.channels, counts, down, rows, columns * share.channels, vector)
    if function == 'grad_input':
        taps_width, taps_step = (size * special.constants['ROW_PITCH'] for size in (width, columns))
    else:
        taps_step = strip * special.constants['RUN_PITCH'] + vector
        taps_width = share.strips * taps_step
    taps_pitch = find_pixel_pitch(taps_width, (1, share.rows, share.strips), 0, 1, taps_step, vector)
    kernel_at = round_up(share.units * height * pitch, ALIGNMENT)
    staged_rows = share.units * share.rows
    grad = staged_rows * share.strips * strip * share.channels if function == 'grad_kernel' else 0
    taps = staged_rows * taps_pitch * (2 if function == 'grad_input' else 1)
    return Block(
        share,
        strip_threads=threads,
        most_strips=_count_strips(problem, share.channels),
        tile_h=height,
        tile_w=width,
        pitch=pitch,
        channel_pitch=share.channels,
        plane_pitch=height * pitch,
        kernel_at=kernel_at,
        kernel_pitch=taps_pitch,
        shared=(kernel_at + grad + taps) * problem.dtype.itemsize,
    )
