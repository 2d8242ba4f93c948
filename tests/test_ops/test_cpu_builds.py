"""The native code under sanitizers, and for 64-bit ARM in an emulator, in a program of its own, against float64.

For the latter, on Debian: `apt-get install g++-aarch64-linux-gnu qemu-user`.

GCC's OpenMP runtime is not compiled for ThreadSanitizer, which does not see that its threads wait for each other. So
there the same work items run on four std::threads.
"""

import ctypes
import os
import shutil
import struct
import subprocess
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import CASES, TOLERANCE, check, make_arguments, make_fused_arguments, run

from mmrednet.ops import fused_involution2d, involution2d
from mmrednet.ops.backends import cpu
from mmrednet.ops.backends.cpu.build import compile_command, compile_library


class Build(NamedTuple):
    """How the code is compiled, and what runs the program that calls it."""

    compiler: str
    flags: tuple = ()
    emulator: tuple = ()
    source: str = 'involution2d.cpp'
    suffix: str = ''  # of the functions' names

    @property
    def missing(self):
        return [name for name in (self.compiler, *self.emulator[:1]) if not shutil.which(name)]


EMULATION = Path(__file__).with_name('emulation')
BUILDS = {
    'sanitizers': Build('g++', ('-O0', '-g1', '-fsanitize=address,undefined', '-fno-sanitize-recover=all')),
    # Without random addresses, which this sanitizer does not support on newer kernels.
    'threads': Build('g++', ('-O0', '-g1', '-fsanitize=thread'), ('setarch', '-R'), 'threads.cpp', '_threads'),
    'aarch64': Build('aarch64-linux-gnu-g++', (), ('qemu-aarch64', '-L', '/usr/aarch64-linux-gnu')),
}
MAKE = {involution2d: make_arguments, fused_involution2d: make_fused_arguments}
WRITTEN = {'involution2d': 'output', 'grad_input': 'input', 'grad_kernel': 'kernel'}


pytestmark = pytest.mark.full

# Faults in a copy of the sources: the build that must find it, the file, the right code, the wrong code, the report.
FAULTS = {
    'a buffer that is too small': (
        'sanitizers',
        'involution2d.cpp',
        'memory.resize(bytes + 64)',
        'memory.resize(bytes / 2)',
        'heap-buffer-overflow',
    ),
    'a row past the image': (
        'sanitizers',
        'packing.h',
        'const bool inside = 0 <= y && y < p.inner_size.y;\n    if (inside && p.stride.x == 2',
        'const bool inside = 0 <= y;\n    if (inside && p.stride.x == 2',
        'heap-buffer-overflow',
    ),
    'a division by zero': (
        'sanitizers',
        'walk.h',
        'index / plan.bands / p.groups;',
        'index / (n & 0);',
        'division by zero',
    ),
    'a buffer that threads share': (
        'threads',
        'involution2d.cpp',
        'static thread_local std::vector<char> kept;',
        'static std::vector<char> kept;',
        'data race',
    ),
    'work items that overlap': (
        'threads',
        'walk.h',
        'p.outer_size.y : y0 + plan.band;',
        'p.outer_size.y : y0 + plan.band + 1;',
        'data race',
    ),
}


def marks(name):
    missing = BUILDS[name].missing
    skip = pytest.mark.skipif(bool(missing), reason=f'needs {" and ".join(missing)}')
    return [skip, pytest.mark.slow] if name == 'aarch64' else [skip]


def make_caller(build, folder, planted=None):
    """Compiles the sources with another compiler or flags, and returns a function that makes the backend call them.

    Each call runs in a process of its own. ``planted`` is a file of the sources, code in it, and its replacement.
    """
    library, program, sources = folder / 'involution2d.so', folder / 'call', folder / 'sources'
    shutil.copytree(cpu.SOURCE.parent, sources, ignore=shutil.ignore_patterns('*.py', '__pycache__'))
    shutil.copy(EMULATION / 'threads.cpp', sources)
    if planted:
        name, sound, wrong = planted
        source = (sources / name).read_text()
        assert source.count(sound) == 1
        (sources / name).write_text(source.replace(sound, wrong))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('CXX', build.compiler)
        compile_library(sources / build.source, [*compile_command(cpu.FLAGS), *build.flags], library)
    command = [build.compiler, *build.flags, EMULATION / 'call.cpp', '-o', program, '-ldl']
    subprocess.run(command, check=True)

    def function(name, dtype):
        entry = f'{name}_{str(dtype).removeprefix("torch.")}{build.suffix}'
        command = [*build.emulator, program, library, entry, folder / 'case', folder / 'result']

        def call(packed):
            regions = sorted(find_memory(packed, dtype).items(), key=lambda region: region[0] != WRITTEN[name])
            (_, (written, size)), *_ = regions
            memory = (struct.pack('2q', *region) + ctypes.string_at(*region) for _, region in regions)
            (folder / 'case').write_bytes(struct.pack('q', len(packed)) + packed + b''.join(memory))
            # LeakSanitizer needs ptrace, which containers may forbid.
            environment = {**os.environ, 'ASAN_OPTIONS': 'detect_leaks=0', 'TSAN_OPTIONS': 'halt_on_error=1'}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise RuntimeError(done.stderr)
            ctypes.memmove(written, (folder / 'result').read_bytes(), size)
            return True

        return call

    return {(name, dtype): function(name, dtype) for name in WRITTEN for dtype in TOLERANCE}


@contextmanager
def use(functions):
    """Makes the CPU backend call these functions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, 'load', lambda: functions)
        patch.delattr(cpu, 'register_kernels', raising=False)
        yield


@pytest.fixture(scope='module', params=[pytest.param(name, marks=marks(name)) for name in BUILDS])
def built(request, tmp_path_factory):
    with use(make_caller(BUILDS[request.param], tmp_path_factory.mktemp(request.param))):
        yield


def find_memory(packed, dtype):
    """Returns the address and bytes of each tensor that struct Arguments names."""
    numbers = iter(struct.unpack(f'{len(packed) // 8}q', packed))
    fields = {name: tuple(next(numbers) for _ in range(count)) for name, count in cpu.ARGUMENTS.items()}
    n, groups, kh, kw, *size = fields['kernel_shape']
    (reduced,) = fields['reduced']
    shapes = {
        'output': (n, fields['input_shape'][1], *size),
        'input': fields['input_shape'],
        'kernel': fields['kernel_shape'],
        'features': (n, reduced, *size),
    }
    extents = {
        name: 1 + sum((count - 1) * step for count, step in zip(shape, fields[f'{name}_strides'], strict=True))
        for name, shape in shapes.items()
    }
    extents |= {'weight': groups * kh * kw * reduced, 'bias': groups * kh * kw}
    if reduced:
        del extents['kernel']  # which is made of the features, and has their address
    return {name: (fields[name][0], count * dtype.itemsize) for name, count in extents.items() if fields[name][0]}


@pytest.mark.parametrize('operator', MAKE, ids=lambda operator: operator.__name__)
@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
def test_outputs_and_gradients(built, operator, dtype):
    for case, channels_last in product(CASES, (False, True)):
        arguments = MAKE[operator](*case, dtype, 'cpu', channels_last)
        check(operator, run(operator, *arguments, backend='cpu'), *arguments)


@pytest.mark.slow
@pytest.mark.parametrize('fault', FAULTS)
def test_a_planted_fault_is_found(fault, tmp_path):
    name, *planted, report = FAULTS[fault]
    if missing := BUILDS[name].missing:
        pytest.skip(f'needs {" and ".join(missing)}')
    with use(make_caller(BUILDS[name], tmp_path, planted)):
        arguments = make_arguments(*CASES[0], torch.float32, 'cpu')
        with pytest.raises(RuntimeError, match=report):
            run(involution2d, *arguments, backend='cpu')
