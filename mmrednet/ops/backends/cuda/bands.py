"""Plans the launches of bands.cu, which computes channels-last images of 16-bit types on tensor cores."""

from collections.abc import Iterator

from .arithmetic import divide_up, equal_part, round_up
from .blocks import find_launch
from .launch import ALIGNMENT, Block, Device, Launch
from .problem import Problem, Share
from .specialisation import CHUNK, SIDE, THREADS, WARP_ROWS, Specialisation, vector_size

STRIP_THREADS = 32 // WARP_ROWS  # a warp computes WARP_ROWS strips, one below the other
MOST_STRIPS = THREADS // STRIP_THREADS  # strips that a block has threads for


def plan(problem: Problem, device: Device) -> Launch | None:
    """Plans a launch, or returns None if tensor cores cannot compute the problem or shared memory is too small."""
    plain = problem.stride == problem.dilation == (1, 1) and problem.kernel_size[1] < SIDE
    small = problem.dtype.itemsize == 2 and problem.group_channels <= CHUNK
    if not (device.tensor_cores and plain and small and problem.is_channels_last):
        return None
    special, whole = problem.specialise('bands'), problem.measure(SIDE)
    return find_launch(problem, special, whole, _find_shares(whole), _even_out, _arrange, device)


def _find_shares(whole: Share) -> Iterator[Share]:
    """Yields the shares that a block has threads for, from the largest to the share of a single warp."""
    rows = min(2, divide_up(whole.rows, WARP_ROWS)) * WARP_ROWS
    share = Share(equal_part(whole.strips, MOST_STRIPS // rows), rows, CHUNK, 1)
    yield share
    while share[:2] != (1, WARP_ROWS):
        if share.rows > WARP_ROWS:
            share = share._replace(rows=share.rows - WARP_ROWS)
        else:
            share = share._replace(strips=share.strips - 1)
        yield share


def _even_out(whole: Share, share: Share) -> Share:
    return share._replace(strips=equal_part(whole.strips, share.strips))


def _arrange(problem: Problem, special: Specialisation, share: Share) -> Block:
    """Places in shared memory the pixels that a share reads, with their channels, and then the taps.

    In grad_kernel, the pixels are those of x and then those of y. A row is SIDE pixels wider than its strips, since for
    each row of the window a strip reads two parts of SIDE pixels.
    """
    function, vector = problem.function, vector_size(problem.dtype)
    height, width, pixels = problem.count_read(0, share.rows), (share.strips + 1) * SIDE, share.strips * SIDE
    channel_pitch = share.channels + vector  # an odd number of vectors, so that eight pixels lie in different banks
    pitch = width * channel_pitch
    kernel_at = round_up(share.units * height * pitch, ALIGNMENT)
    # grad_input needs the taps of every pixel of y whose window contains one of its pixels.
    taps_rows, taps_width = (
        (height, pixels + problem.kernel_size[1] - 1) if function == 'grad_input' else (share.rows, pixels)
    )
    taps_pitch = taps_width * special.constants['RUN_PITCH'] + divide_up(taps_width, SIDE) * vector
    grad = share.rows * pixels * channel_pitch if function == 'grad_kernel' else 0
    return Block(
        share,
        strip_threads=STRIP_THREADS,
        most_strips=MOST_STRIPS,
        tile_h=height,
        tile_w=width,
        pitch=pitch,
        channel_pitch=channel_pitch,
        plane_pitch=height * pitch,
        kernel_at=kernel_at,
        kernel_pitch=taps_pitch,
        shared=(kernel_at + share.units * (grad + taps_rows * taps_pitch)) * problem.dtype.itemsize,
    )
