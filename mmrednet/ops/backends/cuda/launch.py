"""The block of threads that solves a share of a problem, and the launch of all blocks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .arithmetic import divide_up, round_up
from .problem import Problem, Share
from .specialisation import ARGUMENTS, THREADS, Specialisation

if TYPE_CHECKING:
    import numpy

ALIGNMENT = 8  # elements: in every dtype, a multiple of 8 elements is a multiple of 16 bytes


@dataclass(frozen=True)
class Device:
    """The limits of a GPU. The default values work on every GPU, but are not the fastest."""

    shared: int = 48 << 10  # bytes of shared memory of a block, at most
    multiprocessors: int = 0  # 0 if unknown
    max_grid: int = 1 << 20  # blocks of a launch, at most
    tensor_cores: bool = False  # whether they multiply both float16 and bfloat16


class Block(NamedTuple):
    """One block of threads: its share of the work, and where the values that it reads lie in shared memory.

    Sizes and distances are in elements if no other unit is given.
    """

    share: Share
    tile_h: int  # rows of the image that a channel needs
    tile_w: int  # columns
    pitch: int  # from row to row of the image
    channel_pitch: int  # from channel to channel, or from pixel to pixel in channels-last families
    plane_pitch: int  # from unit to unit
    kernel_at: int  # from the start to the values that are staged after the image
    shared: int  # bytes
    kernel_pitch: int = 0  # from row to row of the staged kernels
    strip_threads: int = 1  # threads that compute a strip together
    most_strips: int = THREADS  # strips of all rows and units that the block has threads for


class Counts(NamedTuple):
    """The numbers of tiles in a row and in a column, of chunks in a group, of units, and of blocks."""

    tiles_x: int
    tiles_y: int
    chunks: int
    units: int
    blocks: int

    @classmethod
    def of(cls, problem: Problem, whole: Share, share: Share) -> 'Counts':
        """Returns the numbers for the whole problem if each block computes one share."""
        tiles_x, tiles_y = divide_up(whole.strips, share.strips), divide_up(whole.rows, share.rows)
        chunks = 1 if problem.function == 'grad_kernel' else divide_up(whole.channels, share.channels)
        units = whole.units * chunks
        return cls(tiles_x, tiles_y, chunks, units, tiles_x * tiles_y * divide_up(units, share.units))


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: everything except the pointers."""

    specialisation: Specialisation
    function: str
    grid: int
    block: int
    shared: int
    arguments: 'numpy.ndarray'  # the source's struct Launch, which CuPy passes by value

    @classmethod
    def of(
        cls, problem: Problem, specialisation: Specialisation, whole: Share, block: Block, device: Device
    ) -> 'Launch':
        """Returns the launch that solves the whole problem with such blocks."""
        counts, share = Counts.of(problem, whole, block.share), block.share
        return cls(
            specialisation,
            problem.function,
            grid=min(counts.blocks, device.max_grid),
            block=round_up(block.strip_threads * share.strips * share.rows * share.units, 32),
            shared=block.shared,
            arguments=_pack(problem, specialisation, block, counts),
        )


def _pack(problem: Problem, specialisation: Specialisation, block: Block, counts: Counts) -> 'numpy.ndarray':
    import numpy

    x, k, y, share = problem.x, problem.k, problem.y, block.share
    vectors = specialisation.constants['STRIP'], 2
    y_vectors: tuple[int, ...] = vectors
    if problem.function == 'grad_input' and counts.tiles_x > 1:
        # The first tile of y starts with a vector, and the next one starts this many pixels later.
        strip = specialisation.constant('STRIP', problem.function)
        step = share.strips * strip // problem.stride[1]
        y_vectors = tuple(size for size in vectors if step % size == 0)
    values = {
        'groups': k.shape[1],
        'group_channels': problem.group_channels,
        **_name('in_h in_w out_h out_w pad_h pad_w', (*x.shape[2:], *k.shape[4:], *problem.padding)),
        **_name('xn xc xh xw yn yc yh yw kn kg ku kv ki kj', x.steps + y.steps + k.steps),
        'vector_x': x.find_vector(3, *vectors),
        'vector_y': y.find_vector(3, *y_vectors),
        'vector_k': k.find_vector(5, *vectors),
        'kernel_extent': k.extent,
        **_name('strips rows chunk planes', share),
        **counts._asdict(),
        **block._asdict(),
    }
    index = numpy.dtype(numpy.int64 if specialisation.wide else numpy.int32)
    # Bytes without fields: CuPy would describe the fields again at every launch, which takes 0.1 ms.
    return numpy.array([values[name] for name in ARGUMENTS], index).view(f'V{len(ARGUMENTS) * index.itemsize}')


def _name(names: str, values: tuple[int, ...]) -> dict[str, int]:
    return dict(zip(names.split(), values, strict=True))
