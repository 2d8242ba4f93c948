"""Plans the launches of narrow.cu, for contiguous images that are only a few pixels wide. A thread computes whole rows.

A block computes whole groups. A strip is not a part of a row here, but a part of a group's channels, or in grad_kernel
a row of the window.
"""

from math import prod

from .arithmetic import divide_up, round_up
from .launch import ALIGNMENT, Block, Device, Launch
from .problem import Problem, Share
from .specialisation import CHUNK, THREADS, WIDEST_ROW

MOST_PIXELS = {2: 14, 4: 8, 8: 8}  # of a row that a thread computes, by the bytes of an element
THREAD_CHANNELS = CHUNK // 4  # channels of a row that a thread computes
ENOUGH_THREADS = 64  # in a block: with more, fewer blocks would run while others wait for memory


def plan(problem: Problem, device: Device) -> Launch | None:
    """Plans a launch, or returns None if images are not narrow or a block cannot hold one group of an image."""
    x, k, y = problem.x, problem.k, problem.y
    same_size = problem.stride == (1, 1) and x.shape == y.shape
    if not same_size or x.shape[3] > MOST_PIXELS[problem.dtype.itemsize] or not (x.is_run and k.is_run and y.is_run):
        return None
    kh, kw = problem.kernel_size
    if problem.function == 'grad_kernel' and kw > WIDEST_ROW:
        return None  # a thread holds the sums of a row of the window in registers
    strips = kh if problem.function == 'grad_kernel' else divide_up(problem.group_channels, THREAD_CHANNELS)
    group = Share(strips, x.shape[2], problem.group_channels, 1)
    block = _arrange(problem, group)
    if group.strips * group.rows > THREADS or block.shared > device.shared:
        return None
    several = _arrange(problem, group._replace(units=max(1, ENOUGH_THREADS // (group.strips * group.rows))))
    special = problem.specialise('narrow', phase=problem.phase, narrow=x.shape[3])
    whole = group._replace(units=problem.groups)
    return Launch.of(problem, special, whole, several if several.shared <= device.shared else block, device)


def _arrange(problem: Problem, share: Share) -> Block:
    """Places contiguous copies in shared memory: the image (in grad_kernel x and then y), and then the kernels.

    A copy starts with a whole vector, whose first elements may belong to the previous group.
    """
    width = problem.x.shape[3]
    area = share.rows * width
    image = round_up(share.units * share.channels * area + ALIGNMENT - 1, ALIGNMENT)
    kernels = round_up(share.units * prod(problem.kernel_size) * area + ALIGNMENT - 1, ALIGNMENT)
    images = 2 if problem.function == 'grad_kernel' else 1
    return Block(
        share,
        tile_h=share.rows,
        tile_w=width,
        pitch=width,
        channel_pitch=area,
        plane_pitch=share.channels * area,
        kernel_at=image,
        shared=(images * image + kernels) * problem.dtype.itemsize,
    )
