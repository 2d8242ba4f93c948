"""The CUDA source on the CPU, under the address and undefined behaviour sanitizers, against float64.

The operations of tensor cores, copies to shared memory and conversions of float16 have another form on the CPU.
"""

import shutil
import struct
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TOLERANCE, mark_full

from mmrednet.ops.arguments import output_size, same_padding
from mmrednet.ops.backends import cuda, reference
from mmrednet.ops.backends.cuda.launch import Device
from mmrednet.ops.backends.cuda.plan import plan_launch
from mmrednet.ops.backends.cuda.problem import Layout
from mmrednet.ops.backends.cuda.specialisation import ARGUMENTS

HERE = Path(__file__).parent / 'emulation'
FUNCTIONS = ('forward', 'grad_input', 'grad_kernel')
# What shared memory holds before a block writes to it. Repeated, the byte is NaN or a small number in every dtype.
NAN, SMALL = 0xFF, 0x3C


@dataclass(frozen=True)
class Case:
    """A problem, the layouts of its tensors and how it is launched."""

    input_shape: tuple
    groups: int
    kernel_size: tuple = (7, 7)
    stride: tuple = (1, 1)
    dilation: tuple = (1, 1)
    padding: tuple | None = None
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    pixel_major: bool = False
    device: Device = Device()
    wide: bool = False


TENSOR_CORES = Device(shared=64 << 10, tensor_cores=True)
BANDS = {'dtype': torch.bfloat16, 'channels_last': True, 'pixel_major': True, 'device': TENSOR_CORES}
CASES = {
    'RedNet stage 3': Case((2, 32, 14, 14), 2),
    'RedNet stage 4': Case((3, 64, 7, 7), 4),
    'narrow': Case((3, 80, 7, 7), 5, device=Device(shared=64 << 10)),
    'narrow, several launches': Case((3, 18, 11, 5), 3, (3, 5), padding=(1, 2), device=Device(max_grid=2)),
    'narrow, bfloat16': Case((3, 48, 7, 7), 3, dtype=torch.bfloat16),
    'narrow, float16, 14 pixels': Case((2, 32, 14, 14), 2, dtype=torch.float16),
    'narrow, dilation 2': Case((2, 7, 8, 3), 1, (5, 3), dilation=(2, 3), dtype=torch.float16),
    'narrow, float64': Case((1, 12, 5, 7), 3, (5, 5), dtype=torch.float64),
    'narrow, long window': Case((2, 10, 6, 7), 2, (3, 11)),
    'narrow, 64-bit indices': Case((2, 20, 4, 7), 2, wide=True),
    'narrow, but too large for a block': Case((1, 16, 40, 6), 1),
    'several tiles': Case((1, 16, 35, 70), 1),
    'several launches': Case((3, 20, 35, 21), 2, device=Device(max_grid=2)),
    'one pixel': Case((2, 6, 1, 1), 2),
    'smaller than the window': Case((2, 6, 3, 2), 3),
    'one channel a group': Case((1, 5, 9, 12), 5),
    'one group, chunks of channels': Case((2, 37, 9, 8), 1),
    'one group, channels last': Case((1, 40, 9, 8), 1, channels_last=True, pixel_major=True),
    'odd size, stride 2': Case((2, 18, 15, 13), 1, stride=(2, 2)),
    'stride 2, several launches': Case((1, 36, 37, 71), 2, stride=(2, 2), device=Device(max_grid=1)),
    'stride 2, channels last': Case((2, 32, 15, 13), 2, stride=(2, 2), channels_last=True, pixel_major=True),
    'channels last': Case((2, 32, 14, 19), 2, channels_last=True, pixel_major=True),
    'channels last, several launches': Case(
        (3, 32, 14, 19), 2, channels_last=True, pixel_major=True, device=Device(max_grid=1)
    ),
    'channels last, several images a block': Case((9, 32, 7, 7), 2, channels_last=True, pixel_major=True),
    'channels last, all of it different': Case(
        (2, 24, 17, 19), 3, (5, 2), (2, 3), (3, 2), (1, 4), channels_last=True, pixel_major=True
    ),
    'channels last, float64': Case((1, 12, 9, 10), 2, dtype=torch.float64, channels_last=True, pixel_major=True),
    'channels last, 64-bit indices': Case((2, 32, 9, 19), 2, channels_last=True, pixel_major=True, wide=True),
    'channels last, kernel as it comes': Case((2, 32, 14, 19), 2, channels_last=True),
    'kernel alone pixel-major': Case((2, 32, 14, 19), 2, pixel_major=True),
    'float16': Case((2, 32, 14, 17), 2, dtype=torch.float16),
    'bfloat16': Case((2, 32, 14, 16), 2, dtype=torch.bfloat16),
    'bfloat16, odd size': Case((2, 32, 9, 15), 2, dtype=torch.bfloat16),
    'bfloat16, stride 2, pairs': Case((1, 20, 15, 22), 1, (5, 5), (2, 2), dtype=torch.bfloat16),
    'stride 2, vectors and pairs': Case((1, 20, 17, 52), 1, stride=(2, 2)),
    'float64': Case((2, 32, 14, 14), 2, dtype=torch.float64),
    'float64, stride 2': Case((2, 32, 14, 14), 2, dtype=torch.float64, stride=(2, 2)),
    'float16, channels last': Case((2, 32, 13, 16), 2, dtype=torch.float16, channels_last=True, pixel_major=True),
    'float16, channels last, part of a vector': Case(
        (1, 16, 13, 15), 1, dtype=torch.float16, channels_last=True, pixel_major=True
    ),
    'bfloat16, channels last': Case((1, 48, 13, 40), 3, dtype=torch.bfloat16, channels_last=True, pixel_major=True),
    'bfloat16, channels last, stride 2': Case(
        (1, 48, 13, 16), 3, dtype=torch.bfloat16, stride=(2, 2), channels_last=True, pixel_major=True
    ),
    'bfloat16, channels last, 3x3': Case(
        (1, 32, 33, 35), 2, (3, 3), dtype=torch.bfloat16, channels_last=True, pixel_major=True
    ),
    'tensor cores': Case((1, 32, 14, 30), 2, **BANDS),
    'tensor cores, several launches': replace(
        Case((3, 48, 13, 19), 3, **BANDS), device=replace(TENSOR_CORES, max_grid=1)
    ),
    'tensor cores, several images a block': Case((9, 32, 7, 7), 2, **BANDS),
    'tensor cores, float16': replace(Case((2, 32, 9, 23), 2, **BANDS), dtype=torch.float16),
    'tensor cores, half a group': Case((1, 16, 13, 15), 2, **BANDS),
    'tensor cores, 3x5': Case((1, 32, 9, 18), 2, (3, 5), **BANDS),
    'tensor cores, 2x2': Case((2, 32, 9, 11), 2, (2, 2), padding=(1, 0), **BANDS),
    'tensor cores, no padding': Case((1, 32, 19, 18), 2, (9, 6), padding=(0, 0), **BANDS),
    'tensor cores, much padding': Case((1, 32, 4, 6), 2, padding=(9, 10), **BANDS),
    'tensor cores, 64-bit indices': Case((1, 32, 9, 19), 2, wide=True, **BANDS),
    'tensor cores, but too many channels': Case((1, 48, 9, 8), 1, **BANDS),
    '3x3': Case((2, 32, 33, 40), 2, (3, 3)),
    '3x3, stride 2': Case((2, 32, 33, 40), 2, (3, 3), stride=(2, 2)),
    '1x1': Case((2, 8, 5, 6), 2, (1, 1)),
    'rectangular': Case((2, 12, 11, 9), 3, (3, 5)),
    'rectangular, all of it different': Case((2, 6, 17, 19), 3, (5, 2), (2, 3), (3, 2), (1, 4)),
    'even window, stride 3': Case((2, 6, 16, 19), 3, (4, 2), (3, 3), padding=(0, 0)),
    'stride 5, larger than the window': Case((2, 6, 16, 19), 3, (3, 3), (5, 5), padding=(2, 2)),
    'stride and dilation 2': Case((1, 18, 16, 21), 1, (7, 7), (2, 2), (2, 2)),
    'dilation 2': Case((1, 18, 16, 21), 1, (7, 7), (1, 1), (2, 2)),
    'dilation 12, channels by the tile': Case((1, 20, 40, 9), 1, (3, 3), (1, 1), (12, 12)),
    'long window': Case((1, 6, 13, 15), 1, (3, 11), (1, 1)),
    'long window, stride 2': Case((1, 6, 13, 15), 1, (11, 13), (2, 2)),
    'no padding': Case((1, 6, 13, 15), 1, (7, 7), padding=(0, 0)),
    'much padding': Case((1, 6, 3, 5), 1, (7, 7), padding=(9, 10)),
    '64-bit indices': Case((2, 20, 14, 19), 1, wide=True),
    'few blocks for many multiprocessors': Case((2, 32, 14, 14), 2, device=Device(multiprocessors=132)),
    'more shared memory': Case((1, 16, 35, 70), 1, device=Device(shared=96 << 10)),
}

# The cases of every run, one for each family of kernels. The others run with --all.
QUICK = 'narrow', 'odd size, stride 2', 'channels last', 'bfloat16', 'tensor cores'
# The cases in which values are not finite.
SPOILT = (
    'narrow',
    'narrow, bfloat16',
    'narrow, dilation 2',
    'RedNet stage 3',
    'several tiles',
    'one group, chunks of channels',
    'odd size, stride 2',
    'channels last',
    'channels last, all of it different',
    'bfloat16',
    'float16, channels last',
    'rectangular, all of it different',
    'long window, stride 2',
    'much padding',
    'tensor cores',
    'tensor cores, float16',
    'tensor cores, 3x5',
    'tensor cores, much padding',
)

pytestmark = pytest.mark.skipif(not shutil.which('g++'), reason='needs g++')


# Faults that tests plant, in the line that has the marker in brackets. Here a barrier is left out.
BARRIERS = (
    ('several launches', 'forward', 'sum, tile is read'),
    ('several launches', 'forward', 'sum, copies'),
    ('several launches', 'forward', 'sum, tile is staged'),
    ('narrow, several launches', 'forward', 'narrow, copies'),
    ('narrow, several launches', 'forward', 'narrow, runs are staged'),
    ('narrow, several launches', 'forward', 'narrow, rows are read'),
    ('narrow, several launches', 'forward', 'narrow, rows are written'),
    ('narrow, several launches', 'grad_input', 'narrow, runs are staged'),
    ('narrow, several launches', 'grad_input', 'narrow, rows are read'),
    ('narrow, several launches', 'grad_kernel', 'narrow grad_kernel, copies'),
    ('narrow, several launches', 'grad_kernel', 'narrow grad_kernel, runs are staged'),
    ('narrow, several launches', 'grad_kernel', 'narrow grad_kernel, runs are written'),
    ('several launches', 'grad_input', 'grad_input, tile is read'),
    ('several launches', 'grad_input', 'grad_input, copies'),
    ('several launches', 'grad_input', 'grad_input, tile is staged'),
    ('several launches', 'grad_kernel', 'grad_kernel, tile is read'),
    ('several launches', 'grad_kernel', 'grad_kernel, copies'),
    ('several launches', 'grad_kernel', 'grad_kernel, tile is staged'),
    ('channels last, several launches', 'forward', 'pixels, tile is read'),
    ('channels last, several launches', 'forward', 'pixels, copies'),
    ('channels last, several launches', 'forward', 'pixels, tile is staged'),
    ('channels last, several launches', 'grad_input', 'pixels grad_input, tile is read'),
    ('channels last, several launches', 'grad_input', 'pixels grad_input, copies'),
    ('channels last, several launches', 'grad_input', 'pixels grad_input, row of taps is staged'),
    ('one group, channels last', 'grad_kernel', 'pixels grad_kernel, tile is read'),
    ('channels last, several launches', 'grad_kernel', 'pixels grad_kernel, copies'),
    ('channels last, several launches', 'grad_kernel', 'pixels grad_kernel, tile is staged'),
    ('channels last, several launches', 'grad_kernel', 'pixels grad_kernel, runs are written'),
    ('tensor cores, several launches', 'forward', 'bands, tile is read'),
    ('tensor cores, several launches', 'forward', 'bands, tile is staged'),
    ('tensor cores, several launches', 'grad_input', 'bands, tile is read'),
    ('tensor cores, several launches', 'grad_input', 'bands, copies'),
    ('tensor cores, several launches', 'grad_input', 'bands, tile is staged'),
    ('tensor cores, several launches', 'grad_kernel', 'bands grad_kernel, copies'),
    ('tensor cores, several launches', 'grad_kernel', 'bands grad_kernel, tile is staged'),
    ('tensor cores, several launches', 'grad_kernel', 'bands grad_kernel, runs are written'),
)
# Here an access goes out of bounds: case, marker, the right code and the wrong code.
ACCESSES = (
    ('odd size, stride 2', 'read of a strip', 'min(Index(i), count - V)', 'i'),
    ('odd size, stride 2', 'write of a strip', 'first < count', 'true'),
    ('odd size, stride 2', 'read while staging', 'is_below(y, image.height)', 'is_below(y, image.height + 1)'),
    ('odd size, stride 2', 'write to shared memory', 'place', 'place + 40'),
    ('narrow, several launches', 'copy of a run', 'min(Index(VECTOR), extent - at)', 'VECTOR'),
    ('narrow, several launches', 'write of a run', 'at + i >= first && at + i < end', 'true'),
    ('float16, channels last, part of a vector', 'copy of taps', 'min(Index(VECTOR), extent - at)', 'VECTOR'),
    ('channels last', 'write of a pixel', 's < count', 'true'),
    ('tensor cores, 3x5', 'write of a value', 'j + p < result.width', 'true'),
)
FAULTS = {
    marker: ('wait_for_copies()' if 'copies' in marker else '__syncthreads()', 'void()') for *_, marker in BARRIERS
}
FAULTS |= {marker: replaced for _, marker, *replaced in ACCESSES}


@pytest.fixture(scope='module')
def build(tmp_path_factory):
    """Returns a function that compiles a source once for each set of options, and returns the path of the program."""
    headers = tmp_path_factory.mktemp('headers')
    compiler = 'g++', '-std=c++17', '-O0', '-g1', '-w', '-fsanitize=address,undefined', '-fno-sanitize-recover=all'
    for name in ('cuda_shim.h', 'run.cpp'):  # a precompiled header is found beside the program that includes it
        shutil.copy(HERE / name, headers)
    precompiled = headers / 'cuda_shim.h.gch'
    subprocess.run([*compiler, '-x', 'c++-header', headers / 'cuda_shim.h', '-o', precompiled], check=True)
    programs = {}

    def build_once(source, *options):
        key = source, *options
        if key not in programs:
            folder = tmp_path_factory.mktemp('emulation')
            (folder / 'source.cu').write_text(source)
            command = [*compiler, *options, f'-DCUDA_SOURCE="{folder}/source.cu"', headers / 'run.cpp']
            subprocess.run([*command, '-o', folder / 'run'], check=True)
            programs[key] = folder / 'run'
        return programs[key]

    return build_once


@pytest.mark.parametrize('case', mark_full(CASES, QUICK))
def test_matches_float64(build, case):
    problem = make(case)
    for function in FUNCTIONS:
        launch = plan(case, problem, function)
        first, again = run(build, launch), run(build, launch, order=2, fill=SMALL)
        expected = problem[f'expected {function}']
        error = (first.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
        assert error <= TOLERANCE[case.dtype], f'{function}: {error}'
        assert torch.equal(first, again), f'{function}: it depends on the order of the threads or on unwritten memory'


@pytest.mark.slow
@pytest.mark.parametrize('case', mark_full(CASES, CASES))
def test_random_orders_of_the_threads(build, case):
    """The threads of each block run in 20 random orders, which change at every barrier."""
    problem = make(case)
    for function in FUNCTIONS:
        launch = plan(case, problem, function)
        first = run(build, launch)
        for seed in range(20):
            assert torch.equal(run(build, launch, order=1000 + seed, fill=(NAN, SMALL)[seed % 2]), first), function


@pytest.mark.parametrize('name', mark_full(dict(zip(SPOILT, SPOILT, strict=True)), QUICK))
def test_nothing_gets_through_from_outside_the_image(build, name):
    case = CASES[name]
    problem = make(case, spoilt=True)
    for function in FUNCTIONS:
        result = run(build, plan(case, problem, function))
        expected = problem[f'expected {function}']
        assert expected.isfinite().any()
        atol = TOLERANCE[case.dtype] * expected[expected.isfinite()].abs().max()
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=atol, equal_nan=True)


@pytest.mark.full
@pytest.mark.parametrize(
    'name', ['narrow', 'narrow, bfloat16', 'several tiles', 'channels last', 'float16, channels last, part of a vector']
)
def test_copies_of_gpus_before_sm_80(build, name):
    """There a thread copies through registers, and a copy is done when ``start_copy`` returns."""
    case = CASES[name]
    problem = make(case)
    for function in FUNCTIONS:
        launch = plan(case, problem, function)
        assert launch[0].specialisation.kernels != 'bands'
        result, expected = run(build, launch, options=('-DBLOCKING_COPIES',)), problem[f'expected {function}']
        assert (result.double() - expected).abs().max() <= TOLERANCE[case.dtype] * expected.abs().max()


def test_grid_larger_than_a_launch_loops():
    launch = plan(CASES['several launches'], make(CASES['several launches']), 'forward')[0]
    assert launch.grid == 2 < fields(launch)[ARGUMENTS.index('blocks')]


@pytest.mark.parametrize('function', FUNCTIONS)
def test_an_empty_batch_launches_nothing(function):
    empty = torch.empty(0, 4, 5, 5), torch.empty(0, 1, 3, 3, 5, 5), torch.empty(0, 4, 5, 5)
    cuda._run(function, *empty, (1, 1), (1, 1), (1, 1))


def test_no_channels_have_a_zero_gradient():
    grad = torch.full((2, 1, 3, 3, 5, 5), float('nan'))
    cuda.grad_kernel(grad, torch.empty(2, 0, 5, 5), torch.empty(2, 0, 5, 5), (1, 1), (1, 1), (1, 1))
    assert not grad.any()


@pytest.mark.full
@pytest.mark.parametrize('name, function, copies', [barrier for barrier in BARRIERS if barrier[2].endswith('copies')])
def test_a_read_of_unwritten_memory_is_caught(build, name, function, copies):
    """Copies to shared memory that are not waited for leave it unwritten."""
    launch = plan(CASES[name], make(CASES[name]), function)
    first, again = (run(build, launch, fault=copies, fill=fill) for fill in (NAN, SMALL))
    assert not torch.equal(first, again)


@pytest.mark.full
@pytest.mark.parametrize('name, function, barrier', BARRIERS)
def test_a_missing_barrier_is_caught(build, name, function, barrier):
    launch = plan(CASES[name], make(CASES[name]), function)
    good, bad = run(build, launch, fault='none'), run(build, launch, fault=barrier)
    assert not torch.allclose(good, bad, rtol=1e-3)


@pytest.mark.full
@pytest.mark.parametrize('name, access', [fault[:2] for fault in ACCESSES])
def test_an_access_out_of_bounds_is_caught(build, name, access):
    launch = plan(CASES[name], make(CASES[name]), 'forward')
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(build, launch, fault=access)
    assert 'AddressSanitizer' in error.value.stderr


def plant_faults(source):
    """Returns a source with all faults that it has a marker for. A fault is active if its number is passed to it."""
    lines = source.splitlines(keepends=True)
    for number, (marker, (sound, planted)) in enumerate(FAULTS.items(), 1):
        places = [i for i, line in enumerate(lines) if f'// [{marker}]' in line]
        assert len(places) <= 1
        for at in places:
            assert lines[at].count(sound) == 1
            lines[at] = lines[at].replace(sound, f'(emulation::fault == {number} ? {planted} : {sound})')
    return ''.join(lines)


def make(case, spoilt=False):
    """Returns the tensors of a case, and the results in float64.

    If spoilt, some values are not finite, among them all values of the kernel that belong to taps outside the image.
    """
    torch.manual_seed(0)
    n, c, h, w = case.input_shape
    padding = case.padding or same_padding(case.kernel_size, case.dilation)
    out_h, out_w = output_size((h, w), case.kernel_size, case.stride, padding, case.dilation)
    memory_format = torch.channels_last if case.channels_last else torch.contiguous_format

    def image(*shape):
        return torch.randn(shape).to(case.dtype).contiguous(memory_format=memory_format)

    x, y = image(n, c, h, w), image(n, c, out_h, out_w)
    k = torch.randn(n, case.groups * case.kernel_size[0] * case.kernel_size[1], out_h, out_w).to(case.dtype)
    if spoilt:
        for tensor in (x, k, y):
            tensor[torch.rand(tensor.shape) < 0.002] = float('inf')
        ones = torch.ones(1, 1, h, w)
        outside = F.unfold(ones, case.kernel_size, case.dilation, padding, case.stride).view(-1, out_h, out_w) == 0
        values = torch.tensor((float('inf'), float('-inf'), float('nan')))[torch.randint(3, k.shape)].to(k)
        k = torch.where(outside.repeat(case.groups, 1, 1), values, k)
    if case.pixel_major:
        k = k.contiguous(memory_format=torch.channels_last)
    k = k.unflatten(1, (case.groups, *case.kernel_size))
    wide_x, wide_k = x.double().requires_grad_(), k.double().requires_grad_()
    expected = reference.involution2d(wide_x, wide_k, case.stride, padding, case.dilation)
    grad_x, grad_k = torch.autograd.grad(expected, (wide_x, wide_k), y.double())
    return {
        'x': x,
        'k': k,
        'y': y,
        'padding': padding,
        'expected forward': expected.detach(),
        'expected grad_input': grad_x,
        'expected grad_kernel': grad_k,
    }


def plan(case, problem, function):
    """Plans a launch as the backend does; the tensor to write holds NaN."""
    x, k, y = problem['x'], problem['k'], problem['y']
    if function == 'forward':
        y = torch.full_like(y, float('nan'))
    elif function == 'grad_input':
        x = torch.full_like(x, float('nan'))
    else:
        k = torch.full_like(k, float('nan'))
    x, y = cuda.match_layouts(function, x, y)
    geometry = case.stride, problem['padding'], case.dilation
    launch = plan_launch(function, *(Layout.of(t) for t in (x, k, y)), *geometry, case.device)
    return widen(launch) if case.wide else launch, (x, k, y)


def widen(launch):
    """Returns the launch with 64-bit indices."""
    arguments = fields(launch).astype(np.int64)
    return replace(launch, specialisation=replace(launch.specialisation, wide=True), arguments=arguments)


def fields(launch):
    """Returns the values of ``ARGUMENTS``."""
    return launch.arguments.view(np.int64 if launch.specialisation.wide else np.int32)


def run(build, planned, order=0, options=(), fault=None, fill=NAN):
    """Runs a launch, with the threads in an order and shared memory full of a byte, and returns what it writes.

    ``fault`` is a marker of ``FAULTS`` or 'none': with either, the source is one with faults planted.
    """
    launch, tensors = planned
    specialisation = launch.specialisation
    source, number = specialisation.source(*FUNCTIONS), 0
    if fault:
        source, number = plant_faults(source), ['none', *FAULTS].index(fault)
        assert number == 0 or f'// [{fault}]' in source
    program = build(source, *specialisation.options, *options)
    case, result = program.with_name('case'), program.with_name('result')
    written = cuda.WRITTEN[launch.function]
    head = (
        list(cuda.WRITTEN).index(launch.function),
        launch.grid,
        launch.block,
        launch.shared,
        order,
        written,
    )
    with open(case, 'wb') as file:
        file.write(struct.pack('9q', *head, number, fill, launch.arguments.nbytes) + launch.arguments.tobytes())
        for tensor in tensors:
            memory = flat(tensor).view(torch.uint8).numpy().tobytes()
            file.write(struct.pack('q', len(memory)) + memory)
    subprocess.run([program, case, result], check=True, capture_output=True, text=True)
    memory = torch.frombuffer(bytearray(result.read_bytes()), dtype=tensors[written].dtype)
    return memory.as_strided(tensors[written].shape, tensors[written].stride())


def flat(tensor):
    """Returns the elements of memory from the tensor's first to its last."""
    return tensor.as_strided((Layout.of(tensor).extent,), (1,))
