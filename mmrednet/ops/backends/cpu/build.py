"""Compiles native code for this machine at first use and keeps it in the user's cache folder. It knows no operator."""

import ctypes
import hashlib
import os
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

FLAGS = ('-std=c++17', '-O3', '-fno-math-errno', '-ffp-contract=fast', '-fopenmp', '-fPIC', '-shared', '-w')


def load_library(source: Path, flags: Sequence[str] = (), folder: Path | None = None) -> ctypes.CDLL:
    """Returns a shared library, after compiling it where the cache folder does not hold it whole.

    What is loaded from there belongs to this user, and nobody else can write it or its folder. Where that is not so, or
    nothing can be written or executed there, the library is for this process alone, and a line says so.

    Args:
        source (Path): The C++ file; what else of C++ is beside it belongs to it.
        flags (Sequence[str]): Flags for the compiler, besides those that every library gets. Defaults to ``()``.
        folder (Path, optional): The cache folder. Defaults to None: ``MMREDNET_CACHE_DIR``, or ``mmrednet`` in the
            user's.

    Raises:
        RuntimeError: There is no C++ compiler, or it fails, or what it makes cannot be loaded.
    """
    command = compile_command(flags)
    folder = cache_folder() if folder is None else folder
    path = folder / f'{source.stem}-{digest(source, command)}.so'
    library = None
    try:
        library = _cached(path, source, command)
        return ctypes.CDLL(str(path))
    # FileLock raises the latter where a file system has no locks.
    except (OSError, NotImplementedError) as error:
        _say(
            f'mmrednet: the cache folder {folder} cannot be written or run from ({error}); set MMREDNET_CACHE_DIR to a '
            'folder that is yours alone. Until then each process makes a library of its own'
        )
    with tempfile.TemporaryDirectory(prefix='mmrednet-', ignore_cleanup_errors=True) as temporary:
        path = Path(temporary, path.name)
        path.write_bytes(library or compile_library(source, command, path))
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            raise RuntimeError(
                f'what the C++ compiler made cannot be loaded ({error}): set MMREDNET_CACHE_DIR to a folder from which '
                'programs may run'
            ) from error


def compile_command(flags: Sequence[str] = ()) -> list[str]:
    """Returns the command that compiles a shared library, with these flags besides those that every library gets.

    Raises:
        RuntimeError: There is no C++ compiler.
    """
    compiler = find_compiler()
    return [*compiler, *native_flags(compiler), *FLAGS, *flags, f'-I{Path(torch.__file__).parent / "include"}']


def find_compiler() -> list[str]:
    """Returns the command of the C++ compiler.

    Raises:
        RuntimeError: There is none.
    """
    named = os.environ.get('CXX', '').split()
    if named:
        if shutil.which(named[0]):
            return named
        raise RuntimeError(f'the C++ compiler that CXX names, {named[0]!r}, was not found: correct or unset CXX')
    for name in ('c++', 'g++', 'clang++'):
        if shutil.which(name):
            return [name]
    raise RuntimeError(
        'no C++ compiler was found (c++, g++ or clang++): install one, with `apt-get install g++` or '
        '`conda install gxx_linux-64` for example, or name one in the environment variable CXX'
    )


def native_flags(compiler: list[str]) -> list[str]:
    """Returns the flags for this machine's CPU, and those that one compiler alone knows."""
    native = _macros((*compiler, '-march=native'))
    flags = ['-march=native'] if native else []
    if '__clang__' not in (native or _macros(tuple(compiler))):
        # GCC's own: rows are short, and the loops that clear them must not become calls of memset.
        flags.append('-fno-tree-loop-distribute-patterns')
    return flags


@cache
def _macros(command: tuple[str, ...]) -> str:
    """Returns the compiler's predefined macros: its version and the CPU's features. Nothing where it fails."""
    run = subprocess.run([*command, '-dM', '-E', '-x', 'c++', os.devnull], capture_output=True, text=True)
    return run.stdout if run.returncode == 0 else ''


def digest(source: Path, command: Sequence[str]) -> str:
    """Returns what a library depends on in 16 digits: source and headers, compiler, flags, CPU and torch."""
    macros = _macros(tuple(flag for flag in command if not flag.startswith(('-I', '-D'))))
    files = sorted(path for path in source.parent.iterdir() if path.suffix in ('.h', '.cpp'))
    parts = (*(file.read_text() for file in files), *command, macros, torch.__version__)
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Returns the folder of compiled libraries."""
    if folder := os.environ.get('MMREDNET_CACHE_DIR'):
        return Path(folder)
    return Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')) / 'mmrednet'


def compile_library(source: Path, command: Sequence[str], path: Path) -> bytes:
    """Compiles to ``path``, says so, and returns what is there.

    Raises:
        RuntimeError: The compiler fails.
    """
    _say(f"mmrednet: compiling {source.name} for this machine's CPU (30 to 60 s)")
    run = subprocess.run([*command, str(source), '-o', str(path)], capture_output=True, text=True)
    if run.returncode != 0:
        lines = run.stderr.splitlines()
        reason = next((line for line in lines if 'error' in line or 'cannot find' in line), run.stderr.strip()[-200:])
        raise RuntimeError(f'the C++ compiler {command[0]!r} failed on {source.name}: {reason}')
    return path.read_bytes()


def _cached(path: Path, source: Path, command: Sequence[str]) -> bytes:
    """Returns the library that is at ``path``, after compiling it where it is not. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(path.parent)
    if library := _read(path):
        return library
    with FileLock(path.with_suffix('.lock')):
        if library := _read(path):
            return library
        # A process that does not see the lock, over a network file system, finds a whole file or none.
        with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as temporary:
            built = Path(temporary, path.name)
            library = compile_library(source, command, built)
            built.write_bytes(library + _seal(path, library))
            built.chmod(0o700)
            os.replace(built, path)
    return library


def _read(path: Path) -> bytes | None:
    """Returns the library that is at ``path``. None: it is not there, or not whole, or not this one, or not ours."""
    try:
        check_private(path)
        content = path.read_bytes()
    except OSError:
        return None
    size = len(_seal(path, b''))
    return content[:-size] if content[-size:] == _seal(path, content[:-size]) else None


def _seal(path: Path, library: bytes) -> bytes:
    """Returns what a library's file ends with: loading one that was cut off would end the process without an error."""
    return hashlib.sha256(path.name.encode() + library).digest()


def check_private(path: Path) -> None:
    """Raises OSError where another user could have put this file or folder there, or something into it."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise OSError(f'{path} is a symbolic link')
    # Rights are left as they are: the folder may be one that people share, or the system's.
    if hasattr(os, 'geteuid') and (status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise OSError(f'{path} can be written by others')


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
