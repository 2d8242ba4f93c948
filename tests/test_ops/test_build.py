"""The builder of native code: one process compiles, and no library that another user could have written is loaded."""

import ctypes
import errno
import multiprocessing
import os
import pwd
import shutil
import tempfile

import pytest
import torch
from helpers import hide, run_python, small_disk

from mmrednet.ops.backends.cpu import build

COMPILING = 'mmrednet: compiling'

try:
    COMPILER = shutil.which(build.find_compiler()[0])
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture
def answer(tmp_path, monkeypatch):
    """Loads a library of one function, 42, through a cache folder, with a compiler that notes what it compiles."""
    compiler = tmp_path / 'c++'
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *" -o "*) echo compiled >>{tmp_path}/calls; sleep 0.1;; esac\nexec {COMPILER} "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))
    source = tmp_path / 'answer.cpp'
    source.write_text('extern "C" int answer() { return 42; }')

    def load(folder='cache'):
        return build.load_library(source, folder=tmp_path / folder).answer()

    load.source = source
    load.compilations = lambda: (tmp_path / 'calls').read_text().count('compiled')
    load.file = lambda folder='cache': next((tmp_path / folder).glob('*.so'))
    return load


def test_many_processes_compile_once(answer, tmp_path, capfd):
    context = multiprocessing.get_context('fork')
    processes = [context.Process(target=answer) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert answer() == 42
    out, err = capfd.readouterr()
    assert out == ''
    assert err.count('\n') == err.count(COMPILING) == 1
    assert answer.compilations() == 1
    assert len(list((tmp_path / 'cache').glob('*.so'))) == 1
    assert not [path for path in (tmp_path / 'cache').iterdir() if path.is_dir()]


def test_an_unwritable_cache_is_reported_and_replaced(answer, tmp_path, capfd):
    (tmp_path / 'file').touch()
    assert answer('file/cache') == 42
    error = capfd.readouterr().err
    assert 'cannot be used' in error and 'MMREDNET_CACHE_DIR' in error
    assert COMPILING in error


def test_what_is_there_is_loaded_without_writing(answer, tmp_path, monkeypatch, capfd):
    """A cache on a read-only medium works, too."""
    assert answer() == 42

    def refuse(path):
        raise OSError(f'read-only file system: {path}')

    monkeypatch.setattr(build, 'FileLock', refuse)
    assert answer() == 42 and answer.compilations() == 1
    assert 'cannot be used' not in capfd.readouterr().err


def test_no_compiler_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(RuntimeError, match='no C\\+\\+ compiler was found .* install one'):
        build.find_compiler()
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(RuntimeError, match="CXX names the C.. compiler 'no-such-compiler'"):
        build.find_compiler()


def test_failing_compiler_gives_its_reason(answer, tmp_path, monkeypatch):
    (tmp_path / 'c++').write_text('#!/bin/sh\necho "source: error: out of luck" >&2\nexit 1\n')
    with pytest.raises(RuntimeError, match='out of luck'):
        answer()
    assert not list((tmp_path / 'cache').glob('*.so'))


def test_digest_depends_on_sources_flags_torch_and_cpu(monkeypatch, tmp_path):
    source = tmp_path / 'one.cpp'
    source.write_text('int x;')
    digests = [build.digest(source, ()), build.digest(source, ['-DX'])]
    monkeypatch.setattr(torch, '__version__', '0.0')
    digests.append(build.digest(source, ()))
    source.write_text('int y;')
    digests.append(build.digest(source, ()))
    for name in ('other.h', 'included.cpp'):
        (tmp_path / name).write_text('int z;')
        digests.append(build.digest(source, ()))
    monkeypatch.setattr(build, '_cpu_features', lambda: 'avx512f')  # in a home that machines share
    digests.append(build.digest(source, ()))
    assert len(set(digests)) == 7
    assert build.digest(source, ['-L/one']) == build.digest(source, ['-L/two'])


def test_another_compiler_compiles_another_library(monkeypatch):
    digests = {build.compiler_digest(['c++'])}
    monkeypatch.setattr(build, '_macros', lambda command: '#define __GNUC__ 99')
    assert build.compiler_digest(['c++']) not in digests


def remove_the_compiler(tmp_path, monkeypatch):
    monkeypatch.delenv('CXX')
    monkeypatch.setenv('PATH', str(tmp_path / 'nothing'))


def test_a_kept_library_needs_no_compiler(answer, tmp_path, monkeypatch, capfd):
    """The runtime stage of a container image often has none."""
    assert in_a_process(answer) == 0
    remove_the_compiler(tmp_path, monkeypatch)
    capfd.readouterr()
    assert answer() == 42 and capfd.readouterr().err == ''
    answer.source.write_text('extern "C" int answer() { return 43; }')
    with pytest.raises(RuntimeError, match='no C.. compiler was found'):
        answer()


def test_without_a_compiler_too_what_others_can_write_is_not_loaded(answer, tmp_path, monkeypatch, capfd):
    assert in_a_process(answer) == 0
    remove_the_compiler(tmp_path, monkeypatch)
    answer.file().chmod(0o777)
    with pytest.raises(RuntimeError, match='no C.. compiler was found'):
        answer()
    assert 'another user could have written it' in capfd.readouterr().err


def test_a_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    for variable, folder in (('XDG_CACHE_HOME', 'x/mmrednet'), ('MMREDNET_CACHE_DIR', 'x')):
        monkeypatch.setenv(variable, '~/x')
        assert build.cache_folder() == tmp_path / folder


def test_a_user_without_a_home_has_a_private_cache(monkeypatch):
    """``docker run --user 12345``, without HOME and without an entry in /etc/passwd."""
    for variable in ('HOME', 'XDG_CACHE_HOME', 'MMREDNET_CACHE_DIR'):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, 'getpwuid', {}.__getitem__)
    folder = build.cache_folder()
    assert folder.is_absolute() and folder.name == f'mmrednet-{os.getuid()}'


def in_a_process(function, *arguments):
    """Loads in a new process, since the loader does not read a file again that it has loaded."""
    process = multiprocessing.get_context('fork').Process(target=function, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize('length', (0, 100, 0.6, 0.999))
def test_a_library_that_was_cut_off_is_compiled_anew_once(answer, length):
    """The loader would end the process without an error if pages are missing."""
    assert in_a_process(answer) == 0
    library = answer.file()
    whole = library.read_bytes()
    library.write_bytes(whole[: length if isinstance(length, int) else int(length * len(whole))])
    assert in_a_process(answer) == in_a_process(answer) == 0
    assert answer.compilations() == 2
    assert library.stat().st_size == len(whole)


def test_another_library_is_compiled_anew(answer, tmp_path):
    assert in_a_process(answer) == 0
    library = answer.file()
    answer.source.write_text('extern "C" int question() { return 0; }')
    with pytest.raises(AttributeError, match='answer'):
        answer('other')
    shutil.copyfile(answer.file('other'), library)
    answer.source.write_text('extern "C" int answer() { return 42; }')
    assert in_a_process(answer) == 0
    assert answer() == 42 and answer.compilations() == 3


def test_what_others_can_write_is_not_loaded(answer, tmp_path, capfd):
    assert in_a_process(answer) == 0
    cache, library = tmp_path / 'cache', answer.file()
    assert cache.stat().st_mode & 0o022 == library.stat().st_mode & 0o022 == 0
    library.chmod(0o777)
    assert in_a_process(answer) == 0
    assert answer.compilations() == 2 and library.stat().st_mode & 0o022 == 0
    library.symlink_to(library.rename(tmp_path / 'elsewhere.so'))
    assert in_a_process(answer) == 0
    assert answer.compilations() == 3 and not library.is_symlink()
    (tmp_path / 'link').symlink_to(cache)
    cache.chmod(0o770)
    capfd.readouterr()
    for folder, reason in (('cache', 'written by other users'), ('link', 'symbolic link')):
        assert answer(folder) == 42
        error = capfd.readouterr().err
        assert reason in error and 'MMREDNET_CACHE_DIR' in error and error.count('\n') == 2
    assert answer.compilations() == 5 and cache.stat().st_mode & 0o777 == 0o770


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0, reason='only root gives files away')
@pytest.mark.parametrize('of', ('folder', 'file'))
def test_what_belongs_to_another_user_is_not_loaded(answer, tmp_path, of, capfd):
    assert in_a_process(answer) == 0
    os.chown(tmp_path / 'cache' if of == 'folder' else answer.file(), 65534, 65534)
    assert in_a_process(answer) == 0
    assert answer.compilations() == 2
    assert ('belongs to another user' in capfd.readouterr().err) == (of == 'folder')


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0, reason="root's files are needed")
def test_what_root_wrote_is_loaded_by_every_user(answer, tmp_path, monkeypatch):
    assert in_a_process(answer) == 0
    assert (tmp_path / 'cache').stat().st_mode & 0o005 == 0o005 and answer.file().stat().st_mode & 0o004
    monkeypatch.setattr(os, 'geteuid', lambda: 65534)
    assert in_a_process(answer) == 0 and answer.compilations() == 1


def test_a_library_can_be_kept_whatever_the_umask(answer):
    before = os.umask(0o002)
    try:
        assert in_a_process(answer) == in_a_process(answer) == 0
    finally:
        os.umask(before)
    assert answer.compilations() == 1


def test_a_folder_from_which_nothing_runs_is_reported_and_replaced(answer, tmp_path, monkeypatch, capfd):
    load = ctypes.CDLL

    def refuse(path):
        if str(tmp_path) in path:
            raise OSError('failed to map segment from shared object')
        return load(path)

    monkeypatch.setattr(ctypes, 'CDLL', refuse)
    for _ in range(2):
        assert answer() == 42
        assert 'programs may run' in capfd.readouterr().err
    assert answer.compilations() == 1
    monkeypatch.setattr(ctypes, 'CDLL', lambda path: refuse(str(tmp_path)))
    with pytest.raises(RuntimeError, match='failed to map .* MMREDNET_CACHE_DIR or TMPDIR'):
        answer()


def test_an_old_runtime_library_is_named_as_the_cause(answer, monkeypatch, capfd):
    def refuse(path):
        raise OSError("libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by answer.so)")

    monkeypatch.setattr(ctypes, 'CDLL', refuse)
    with pytest.raises(RuntimeError, match='GLIBCXX_3.4.32.* older than .* libstdcxx-ng'):
        answer()
    assert 'cache folder' not in capfd.readouterr().err and answer.compilations() == 1


@pytest.mark.parametrize('error', (OSError(errno.ENOLCK, 'No locks available'), NotImplementedError('no flock')))
def test_a_file_system_without_locks_has_a_cache(error, answer, monkeypatch, capfd):
    def refuse(lock):
        raise error

    monkeypatch.setattr(build.FileLock, 'acquire', refuse)
    assert in_a_process(answer) == in_a_process(answer) == 0
    assert answer.compilations() == 1
    assert 'cannot be used' not in capfd.readouterr().err


def test_a_full_cache_is_reported_and_replaced(answer, tmp_path, monkeypatch, capfd):
    """There is room for a part of the library."""
    with small_disk(tmp_path / 'disk', 8 << 10) as disk:
        assert answer('disk') == 42
        assert f'{disk} cannot be used' in (error := capfd.readouterr().err) and 'No space left' in error
        assert not list(disk.glob('*.so')) and not list(disk.glob('.mmrednet*'))
        monkeypatch.setattr(tempfile, 'tempdir', str(disk))
        with pytest.raises(RuntimeError, match=f'No space left.* Make room in {disk}'):
            answer('disk')


def test_no_fcntl_is_needed():
    """Windows lacks it."""
    run_python(hide('fcntl') + 'import mmrednet.ops.backends.cpu')
