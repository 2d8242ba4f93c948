"""The native code under sanitizers, and for 64-bit ARM in an emulator, in a program of its own, against float64.

For the latter, on Debian: `apt-get install g++-aarch64-linux-gnu qemu-user`.
"""

import ctypes
import shutil
import struct
import subprocess
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import CASES, TOLERANCE, check, make_arguments, make_fused_arguments, run

from mmrednet.ops import fused_involution2d, involution2d
from mmrednet.ops.backends import cpu
from mmrednet.ops.backends.cpu.build import compile_command, compile_library


class Build(NamedTuple):
    """How the code is compiled, and what runs the program that calls it."""

    compiler: str
    flags: tuple = ()
    emulator: tuple = ()

    @property
    def missing(self):
        return [name for name in (self.compiler, *self.emulator[:1]) if not shutil.which(name)]


BUILDS = {
    'sanitizers': Build('g++', ('-O0', '-g1', '-fsanitize=address,undefined', '-fno-sanitize-recover=all')),
    'aarch64': Build('aarch64-linux-gnu-g++', (), ('qemu-aarch64', '-L', '/usr/aarch64-linux-gnu')),
}
MAKE = {involution2d: make_arguments, fused_involution2d: make_fused_arguments}
WRITTEN = {'involution2d': 'output', 'grad_input': 'input', 'grad_kernel': 'kernel'}


pytestmark = pytest.mark.full


def marks(name):
    missing = BUILDS[name].missing
    skip = pytest.mark.skipif(bool(missing), reason=f'needs {" and ".join(missing)}')
    return [skip, pytest.mark.slow] if name == 'aarch64' else [skip]


@pytest.fixture(scope='module', autouse=True, params=[pytest.param(name, marks=marks(name)) for name in BUILDS])
def program(request, tmp_path_factory):
    """Makes the CPU backend call another build's functions, each in a process of its own."""
    build, folder = BUILDS[request.param], tmp_path_factory.mktemp(request.param)
    library, program = folder / 'involution2d.so', folder / 'call'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('CXX', build.compiler)
        compile_library(cpu.SOURCE, [*compile_command(cpu.FLAGS), *build.flags], library)
        source = Path(__file__).with_name('emulation') / 'call.cpp'
        subprocess.run([build.compiler, *build.flags, source, '-o', program, '-ldl'], check=True)

        def function(name, dtype):
            entry = f'{name}_{str(dtype).removeprefix("torch.")}'
            command = [*build.emulator, program, library, entry, folder / 'case', folder / 'result']

            def call(packed):
                regions = sorted(find_memory(packed, dtype).items(), key=lambda region: region[0] != WRITTEN[name])
                (_, (written, size)), *_ = regions
                memory = (struct.pack('2q', *region) + ctypes.string_at(*region) for _, region in regions)
                (folder / 'case').write_bytes(struct.pack('q', len(packed)) + packed + b''.join(memory))
                subprocess.run(command, check=True)
                ctypes.memmove(written, (folder / 'result').read_bytes(), size)
                return True

            return call

        functions = {(name, dtype): function(name, dtype) for name in WRITTEN for dtype in TOLERANCE}
        patch.setattr(cpu, 'load', lambda: functions)
        patch.delattr(cpu, 'register_kernels')
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
def test_outputs_and_gradients(operator, dtype):
    for case, channels_last in product(CASES, (False, True)):
        arguments = MAKE[operator](*case, dtype, 'cpu', channels_last)
        check(operator, run(operator, *arguments, backend='cpu'), *arguments)
