"""The index arithmetic of the CPU kernels against plain Python, for random geometries. It needs a C++ compiler."""

import ctypes
import random
from pathlib import Path

import pytest

from mmrednet.ops.backends import cpu
from mmrednet.ops.backends.cpu.build import compile_command, compile_library


@pytest.fixture(scope='module')
def list_indices(tmp_path_factory):
    """Returns a function from a geometry to the integers that the native code computes for it."""
    source = Path(__file__).with_name('emulation') / 'indices.cpp'
    path = tmp_path_factory.mktemp('indices') / 'indices.so'
    compile_library(source, [*compile_command(cpu.FLAGS), '-O0', '-include', 'array', f'-I{cpu.SOURCE.parent}'], path)
    function = ctypes.CDLL(str(path)).list_indices
    function.restype = ctypes.c_int64
    out = (ctypes.c_int64 * 4096)()

    def call(*geometry):
        count = function((ctypes.c_int64 * 7)(*geometry), out)
        return out[:count]

    return call


def check(native, size, taps, stride, padding, dilation, channels, threads):
    """Compares one geometry: native is what the compiled code returned."""
    reach = (taps - 1) * dilation
    outputs = len(range(-padding, size + padding - reach, stride))
    read = iter(native)
    assert next(read) == outputs
    if len(native) == 1:  # no output, or far too much memory
        assert outputs == 0 or (4 * stride + reach) * (outputs * stride + reach) * channels * 4 > 64 << 20
        return
    phase_step, row_step, channel_step, rows, band, bands, end, tile_rows, lanes = (next(read) for _ in range(9))
    columns = [next(read) for _ in range(taps)]
    runs = [(next(read), next(read)) for _ in range(stride)]

    # A row of the buffer: column j of phase f holds the pixel j * stride + f - padding, or zero outside the image.
    for phase, run in enumerate(runs):
        place = phase - padding
        inside = range(max(0, -(place // stride)), min(phase_step, max(0, -((place - size) // stride))))
        assert run == (inside.start, inside.stop) if inside else run[0] == run[1]
    for tap, column in enumerate(columns):
        phase, j = divmod(column, phase_step)
        assert j * stride + phase == tap * dilation
        assert j + max(outputs, lanes) <= phase_step  # whole vectors stay in the phase
    assert stride * phase_step <= row_step

    # The work items have all rows of outputs, and the buffer has all rows of pixels under the tiles of one item.
    assert band % tile_rows == 0
    last_height = outputs - (bands - 1) * band
    assert min(outputs, tile_rows) <= last_height < band + tile_rows
    for height in (band, last_height) if bands > 1 else (last_height,):
        last_tile = max(0, height - tile_rows)
        assert (last_tile + tile_rows - 1) * stride + reach < rows
    assert rows * row_step <= channel_step
    assert end == channels * channel_step

    # The gradient of the input: tap t of output x in a phase is the kernel's tap at the output that reads the pixel.
    for phase in range(min(stride, size)):
        count, first, step, apart, offset = (next(read) for _ in range(5))
        met = [tap for tap in range(taps) if (phase + padding - tap * dilation) % stride == 0]
        assert [first + i * step for i in range(count)] == met
        for i, tap in enumerate(reversed(met)):
            assert (i * apart + offset) * stride + tap * dilation - padding == phase
    assert next(read, None) is None


def draw(rng):
    """Returns a geometry: mostly small, at times with a large number."""
    most = rng.choice((1, 1, 1, 10))
    return (
        rng.randint(1, 40 * most),
        rng.randint(1, rng.choice((3, 7, 15 * most))),
        rng.randint(1, rng.choice((1, 2, 4, 9 * most))),
        rng.randint(0, rng.choice((0, 3, 20 * most))),
        rng.randint(1, rng.choice((1, 2, 5 * most))),
        rng.randint(1, 20),
        rng.randint(1, 16),
    )


@pytest.mark.parametrize(
    'count', (pytest.param(20_000, marks=pytest.mark.full), pytest.param(1_000_000, marks=pytest.mark.slow))
)
def test_random_geometries(list_indices, count):
    rng, without_outputs = random.Random(count), 0
    for _ in range(count):
        geometry = draw(rng)
        native = list_indices(*geometry)
        without_outputs += native[0] == 0
        try:
            check(native, *geometry)
        except AssertionError as error:
            raise AssertionError(f'geometry {geometry}') from error
    assert 0 < without_outputs < count / 2


@pytest.mark.full
def test_a_wrong_index_is_found(list_indices):
    geometry = 9, 5, 2, 2, 1, 4, 1
    native = list_indices(*geometry)
    check(native, *geometry)
    for place in range(len(native) - 1):
        if place in (2, 4, 8, 9):  # there may be more room, and tiles may be larger
            continue
        with pytest.raises((AssertionError, ZeroDivisionError)):
            check([value + (i == place) for i, value in enumerate(native)], *geometry)
