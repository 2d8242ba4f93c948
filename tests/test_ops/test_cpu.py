"""What only the native CPU backend has: a library that is compiled once, threads, and layouts read in place."""

import ctypes
import functools
import multiprocessing
import sys
import warnings

import pytest
import torch

from mmrednet.ops import backends, involution2d
from mmrednet.ops.backends import cpu
from mmrednet.ops.backends.cpu import build

COMPILING = 'mmrednet: compiling'

try:
    cpu.load()
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)

load_again = cpu.load.__wrapped__


@pytest.fixture
def fake_compiler(tmp_path, monkeypatch):
    """A compiler that notes each compilation and hands out the library that exists already, with an empty cache."""
    library = build.load_library(cpu.SOURCE, cpu.FLAGS)._name
    path = tmp_path / 'c++'
    path.write_text(
        f'#!{sys.executable}\n'
        'import shutil, sys, time\n'
        'if "-o" in sys.argv:\n'
        f'    open({str(tmp_path / "calls")!r}, "a").write("x")\n'
        '    time.sleep(0.3)\n'
        f'    shutil.copy({str(library)!r}, sys.argv[sys.argv.index("-o") + 1])\n'
    )
    path.chmod(0o755)
    monkeypatch.setenv('CXX', str(path))
    monkeypatch.setenv('MMREDNET_CACHE_DIR', str(tmp_path / 'cache'))


def test_many_processes_compile_once(fake_compiler, tmp_path, capfd):
    context = multiprocessing.get_context('fork')
    processes = [context.Process(target=load_again) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    load_again()
    out, err = capfd.readouterr()
    assert out == ''
    assert err.count('\n') == err.count(COMPILING) == 1
    assert (tmp_path / 'calls').read_text() == 'x'
    assert len(list((tmp_path / 'cache').glob('*.so'))) == 1


def test_unwritable_cache_is_said_and_survived(fake_compiler, tmp_path, monkeypatch, capfd):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('MMREDNET_CACHE_DIR', str(tmp_path / 'file' / 'cache'))
    load_again()
    error = capfd.readouterr().err
    assert 'cannot be written' in error and 'MMREDNET_CACHE_DIR' in error
    assert COMPILING in error


def test_no_compiler_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(RuntimeError, match='no C\\+\\+ compiler was found .* install one'):
        load_again()
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(RuntimeError, match="CXX names, 'no-such-compiler'"):
        load_again()


def test_failing_compiler_gives_its_reason(tmp_path, monkeypatch):
    compiler = tmp_path / 'c++'
    compiler.write_text('#!/bin/sh\necho "source: error: out of luck" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))
    monkeypatch.setenv('MMREDNET_CACHE_DIR', str(tmp_path / 'cache'))
    with pytest.raises(RuntimeError, match='out of luck'):
        load_again()
    assert not list((tmp_path / 'cache').glob('*.so'))


def test_fallback_warns_once_without_compiler(tmp_path, monkeypatch):
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setattr(cpu, 'load', load_again)
    monkeypatch.setattr(backends, '_load', functools.cache(backends._load.__wrapped__))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(2):
            involution2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3, 4, 4))
    assert len(caught) == 1 and 'install one' in str(caught[0].message)


def test_digest_depends_on_sources_flags_and_torch(monkeypatch, tmp_path):
    command = [*build.find_compiler(), *build.FLAGS]
    digests = {build.digest(cpu.SOURCE, command), build.digest(cpu.SOURCE, [command[0], '-DX', *command[1:]])}
    monkeypatch.setattr(torch, '__version__', '0.0')
    digests.add(build.digest(cpu.SOURCE, command))
    (tmp_path / 'other.cpp').write_text('int x;')
    digests.add(build.digest(tmp_path / 'other.cpp', command))
    (tmp_path / 'other.h').write_text('int y;')
    digests.add(build.digest(tmp_path / 'other.cpp', command))
    assert len(digests) == 5


@pytest.fixture
def answer(tmp_path):
    """A source of one function, and how a library of it is loaded through a cache folder."""
    source = tmp_path / 'answer.cpp'
    source.write_text('extern "C" int answer() { return 42; }')
    return lambda folder='cache': build.load_library(source, folder=tmp_path / folder).answer()


def test_a_broken_library_is_compiled_anew_once(answer, tmp_path, capfd):
    assert answer() == 42
    (library,) = (tmp_path / 'cache').glob('*.so')
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / library.name).write_bytes(library.read_bytes()[:100])
    capfd.readouterr()
    assert answer('other') == answer('other') == 42
    assert capfd.readouterr().err.count(COMPILING) == 1


def test_what_others_can_write_is_not_loaded(answer, tmp_path, capfd):
    assert answer() == 42
    assert (tmp_path / 'cache').stat().st_mode & 0o777 == 0o700
    (library,) = (tmp_path / 'cache').glob('*.so')
    library.chmod(0o777)
    capfd.readouterr()
    assert answer() == 42
    assert capfd.readouterr().err.count(COMPILING) == 1 and library.stat().st_mode & 0o022 == 0
    target = library.rename(tmp_path / 'elsewhere.so')
    library.symlink_to(target)
    assert answer() == 42 and not library.is_symlink()
    (tmp_path / 'cache').chmod(0o777)
    capfd.readouterr()
    assert answer() == 42
    error = capfd.readouterr().err
    assert 'written by others' in error and 'MMREDNET_CACHE_DIR' in error


def test_a_folder_from_which_nothing_runs_is_said_and_survived(answer, tmp_path, monkeypatch, capfd):
    load = ctypes.CDLL

    def refuse(path):
        if str(tmp_path) in path:
            raise OSError('failed to map segment from shared object')
        return load(path)

    monkeypatch.setattr(ctypes, 'CDLL', refuse)
    assert answer() == 42
    assert 'run from' in capfd.readouterr().err
    monkeypatch.setattr(ctypes, 'CDLL', lambda path: refuse(str(tmp_path)))
    with pytest.raises(RuntimeError, match='MMREDNET_CACHE_DIR'):
        answer()


@pytest.mark.parametrize('stride', [1, 2])
def test_bits_do_not_depend_on_threads(stride):
    size = 61 // stride + (stride == 2)
    input = torch.randn(2, 32, 61, 61, requires_grad=True)
    kernel = torch.randn(2, 2, 7, 7, size, size, requires_grad=True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = involution2d(input, kernel, stride, backend='cpu')
            results.append((out, *torch.autograd.grad(out.square().sum(), (input, kernel))))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_channels_last_without_copies():
    """The whole step allocates its results and nothing else that is as large as a feature map."""
    input = torch.randn(2, 64, 40, 40).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(2, 4 * 49, 40, 40).contiguous(memory_format=torch.channels_last).unflatten(1, (4, 7, 7))
    out, grads = torch.empty_like(input), (torch.empty_like(input), torch.empty_like(kernel))
    geometry = (1, 1), (3, 3), (1, 1)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        cpu.involution2d(out, input, kernel, *geometry)
        cpu.grad_input(grads[0], out, kernel, *geometry)
        cpu.grad_kernel(grads[1], out, input, *geometry)
    assert not [event for event in profile.events() if event.cpu_memory_usage > 0]
    result = involution2d(input, kernel, backend='cpu')
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, out)
