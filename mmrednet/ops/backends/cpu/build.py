"""Compiles C++ for this machine at first use and keeps the libraries in the user's cache folder."""

import ctypes
import errno
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

from ....files import replacing

FLAGS = ('-std=c++17', '-O3', '-fno-math-errno', '-ffp-contract=fast', '-fopenmp', '-fPIC', '-shared', '-w')
FULL = os.strerror(errno.ENOSPC)  # the compiler and the linker print it, too


def load_library(source: Path, flags: Sequence[str] = (), folder: Path | None = None) -> ctypes.CDLL:
    """Loads a shared library. If the cache folder does not hold it, it is compiled first.

    Only a library that this user or root wrote, and that nobody else can replace, is loaded from the cache folder. If
    the folder cannot be used, this process compiles a library for itself, and a line on stderr gives the reason.

    Raises RuntimeError if there is neither a library nor a C++ compiler, the compiler fails, or loading fails.
    """
    folder = cache_folder() if folder is None else folder
    name = f'{source.stem}-{digest(source, flags)}'
    try:
        command = compile_command(flags)
        path = folder / f'{name}-{compiler_digest(command)}.so'
    except RuntimeError:
        # A container image may hold a library that was compiled before the compiler was removed.
        command, kept = [], _newest(folder, name)
        if kept is None:
            raise
        path = kept
    library = None
    try:
        library = _cached(path, source, command)
        return ctypes.CDLL(str(path))
    except OSError as error:
        problem = error
    with tempfile.TemporaryDirectory(prefix='mmrednet-', ignore_cleanup_errors=True) as temporary:
        path = Path(temporary, path.name)
        try:
            path.write_bytes(library or compile_library(source, command, path))
            loaded = ctypes.CDLL(str(path))
        except OSError as error:
            raise RuntimeError(f'the compiled library cannot be loaded: {error}{_remedy(str(error))}') from error
    # The library loads from another folder, so the cache folder is the cause.
    _report(
        f'mmrednet: the cache folder {folder} cannot be used ({problem}): set MMREDNET_CACHE_DIR to a folder that only '
        'you can write and from which programs may run. Each process now compiles a library of its own'
    )
    return loaded


def _remedy(error: str) -> str:
    if 'GLIBC' in error or 'CXXABI' in error:  # GLIBC_2.38, GLIBCXX_3.4.32, CXXABI_1.3.15
        return (
            '. The C or C++ runtime library of this process is older than the one that the compiler used: update it, '
            'with `conda install -c conda-forge libstdcxx-ng` in a conda environment, or name an older compiler in CXX'
        )
    if FULL in error:
        return f'. Make room in {tempfile.gettempdir()}, or set MMREDNET_CACHE_DIR or TMPDIR to another folder'
    if 'map segment' in error or 'permi' in error.lower():
        return '. Set MMREDNET_CACHE_DIR or TMPDIR to a folder from which programs may run'
    return ''


def compile_command(flags: Sequence[str] = ()) -> list[str]:
    """Returns the command that compiles a shared library. Raises RuntimeError if no C++ compiler was found."""
    compiler = find_compiler()
    return [*compiler, *native_flags(compiler), *FLAGS, *flags, f'-I{Path(torch.__file__).parent / "include"}']


def find_compiler() -> list[str]:
    """Returns the command of the C++ compiler: ``CXX``, or the first of c++, g++ and clang++ that is installed."""
    named = os.environ.get('CXX', '').split()
    if named and not shutil.which(named[0]):
        raise RuntimeError(f'CXX names the C++ compiler {named[0]!r}, which was not found: correct or unset CXX')
    if named:
        return named
    for name in ('c++', 'g++', 'clang++'):
        if shutil.which(name):
            return [name]
    raise RuntimeError(
        'no C++ compiler was found (c++, g++ or clang++): install one, with `apt-get install g++` or '
        '`conda install gxx_linux-64` for example, or name one in the environment variable CXX'
    )


def native_flags(compiler: list[str]) -> list[str]:
    """Returns the flags for this machine's CPU, and those that only GCC has."""
    native = _macros((*compiler, '-march=native'))
    flags = ['-march=native'] if native else []
    if '__clang__' not in (native or _macros(tuple(compiler))):
        # Rows are short: a call of memset takes longer than the loop that it replaces.
        flags.append('-fno-tree-loop-distribute-patterns')
    return flags


@cache
def _macros(command: tuple[str, ...]) -> str:
    """Returns the compiler's predefined macros: its version and the CPU's features. Empty if the compiler fails."""
    run = subprocess.run([*command, '-dM', '-E', '-x', 'c++', os.devnull], capture_output=True, text=True)
    return run.stdout if run.returncode == 0 else ''


def digest(source: Path, flags: Sequence[str]) -> str:
    """Returns 16 digits that identify sources, flags, torch's version and the CPU. It needs no compiler."""
    files = sorted(path for path in source.parent.iterdir() if path.suffix in ('.h', '.cpp'))
    flags = [flag for flag in (*FLAGS, *flags) if not flag.startswith('-L')]  # folders may differ
    return _hash(*(file.read_text() for file in files), *flags, torch.__version__, _cpu_features())


def compiler_digest(command: Sequence[str]) -> str:
    """Returns 16 digits that identify the compiler and its version."""
    return _hash(_macros(tuple(flag for flag in command if not flag.startswith(('-I', '-D', '-L', '-l')))))


def _hash(*parts: str) -> str:
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]


def _cpu_features() -> str:
    """Returns the CPU and its instruction sets: home folders and container images move between machines."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:  # not on Linux
        lines = []
    features = {line for line in lines if line.startswith(('flags', 'Features'))}
    return '\n'.join((platform.machine(), platform.processor(), *sorted(features)))


def cache_folder() -> Path:
    """Returns the folder of compiled libraries: ``MMREDNET_CACHE_DIR``, or ``mmrednet`` in the user's cache folder."""
    folder = os.environ.get('MMREDNET_CACHE_DIR')
    folder = folder or os.path.join(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'mmrednet')
    path = Path(os.path.expanduser(folder))
    # `~` stays in a container whose user has neither HOME nor an entry in /etc/passwd.
    return Path(tempfile.gettempdir(), f'mmrednet-{os.getuid()}') if str(path).startswith('~') else path


def compile_library(source: Path, command: Sequence[str], path: Path) -> bytes:
    """Compiles a source to ``path``, reports that on stderr, and returns the content of the library.

    Raises RuntimeError if the compiler fails, and OSError if the disk is full.
    """
    _report(f"mmrednet: compiling {source.name} for this machine's CPU (30 to 60 s)")
    run = subprocess.run([*command, str(source), '-o', str(path)], capture_output=True, text=True)
    if run.returncode != 0:
        if FULL in run.stderr:
            raise OSError(errno.ENOSPC, FULL, str(path))
        lines = run.stderr.splitlines()
        reason = next((line for line in lines if 'error' in line or 'cannot find' in line), run.stderr.strip()[-200:])
        raise RuntimeError(f'the C++ compiler {command[0]!r} failed on {source.name}: {reason}')
    return path.read_bytes()


def _newest(folder: Path, name: str) -> Path | None:
    """Returns the newest complete library with this name, from any compiler, or None."""
    paths = sorted(folder.glob(f'{name}-*.so'), key=lambda path: path.stat().st_mtime, reverse=True)
    whole = next((path for path in paths if _read(path)), None)
    if paths and not whole:
        _report(f'mmrednet: {paths[0]} is not used: another user could have written it, or it is not whole')
    return whole


def _cached(path: Path, source: Path, command: Sequence[str]) -> bytes:
    """Returns the library at ``path``. It is compiled if it is not there."""
    # Others may read the folder: root can fill it for all users.
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    check_private(path.parent)
    if library := _read(path):
        return library
    lock = FileLock(path.with_suffix('.lock'), timeout=300)  # seconds, longer than a compilation takes
    # Some file systems have no locks. Then several processes may compile, but the file at `path` is always whole.
    try:
        lock.acquire()
    except (OSError, NotImplementedError):
        if not os.access(path.parent, os.W_OK):
            raise
    try:
        if library := _read(path):
            return library
        with replacing(path) as part:
            library = compile_library(source, command, part)
            part.write_bytes(library + _seal(path, library))
            part.chmod(0o755)
    finally:
        lock.release()
    return library


def _read(path: Path) -> bytes | None:
    """Returns the library at ``path``, or None if it is missing, not whole, or possibly written by another user."""
    try:
        check_private(path.parent)
        check_private(path)
        content = path.read_bytes()
    except OSError:
        return None
    size = len(_seal(path, b''))
    return content[:-size] if content[-size:] == _seal(path, content[:-size]) else None


def _seal(path: Path, library: bytes) -> bytes:
    """Returns the checksum at the end of a library's file. Loading a truncated library would crash the process."""
    return hashlib.sha256(path.name.encode() + library).digest()


def check_private(path: Path) -> None:
    """Raises OSError if a user other than this one and root could have written this file or into this folder."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise OSError(f'{path} is a symbolic link')
    if not hasattr(os, 'geteuid'):  # Windows
        return
    if status.st_uid not in (os.geteuid(), 0):
        raise OSError(f'{path} belongs to another user')
    # The mode is left as it is, since the folder may be shared on purpose.
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f'{path} can be written by other users')


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
