"""What works on this machine, what does not, and why: a report that fits an issue. It needs torch alone."""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from .. import __version__
from ..requirements import MINIMUM, require
from . import COMMANDS

# What the kernels can make use of, as Linux calls it.
CAPABILITIES = ('avx2', 'fma', 'f16c', 'avx512f', 'avx512_bf16', 'avx512_fp16', 'amx_tile', 'asimd', 'sve')
TIMEOUT = 600  # seconds: a kernel may have to be compiled


class Finding(NamedTuple):
    """What is here, and what is wrong with it, if anything is."""

    here: str
    problem: str = ''


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument('--json', action='store_true', help='prints JSON, not a Markdown table')


def run(args: argparse.Namespace) -> None:
    """Prints the report."""
    findings = {what: _public(finding) for what, finding in _look()}
    if args.json:
        print(json.dumps({what: finding._asdict() for what, finding in findings.items()}, indent=1))
        return
    rows = [('what', 'here', 'problem'), ('---', '---', '---'), *((what, *found) for what, found in findings.items())]
    for row in rows:
        print('|', ' | '.join(' '.join(cell.split()).replace('|', r'\|') for cell in row), '|')


def _public(finding: Finding) -> Finding:
    """Leaves the user's name and folders out."""
    home = os.path.expanduser('~')
    here = finding.here.replace(home, '~') if len(home) > 1 else finding.here
    return Finding(here, re.sub(r'(?<![\w.:/~])/([^\s:\'"/]+/)+', '', finding.problem))


def _look() -> Iterator[tuple[str, Finding]]:
    """Yields what the probes find, in a process of their own: a broken package can end that, and another goes on."""
    start = 0
    while True:
        code = f'from {__name__} import _report; _report({start})'
        command = [sys.executable, '-c', code]
        try:
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=TIMEOUT)
            output, status = result.stdout, result.returncode
            end = signal.Signals(-status).name if status < 0 else f'exit status {status}'
        except subprocess.TimeoutExpired as error:
            output, end = error.stdout or b'', f'no answer in {TIMEOUT} s'
        lines = [json.loads(line) for line in output.splitlines()]
        names, findings = lines[::2], lines[1::2]
        yield from zip(names, (Finding(*finding) for finding in findings), strict=False)
        if not names:
            yield 'this report', Finding('broken', f'its process ends ({end})')
        if len(names) == len(findings):
            return
        yield names[-1], Finding('broken', f'looking at it ends the process ({end})')
        start += len(names)


def _report(start: int) -> None:
    """Writes, as lines of JSON, the name of each probe from the one numbered ``start`` on, and then its finding."""
    lines = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what packages print is no finding
    for name, probe in islice(_probes(), start, None):
        print(json.dumps(name), file=lines, flush=True)
        try:
            finding = probe()
        except BaseException as error:  # packages also call sys.exit
            finding = Finding('broken', f'{type(error).__name__}: {error}')
        print(json.dumps(finding), file=lines, flush=True)


def _probes() -> Iterator[tuple[str, Callable[[], Finding]]]:
    yield 'mmrednet', lambda: Finding(__version__)
    yield 'Python', lambda: Finding(f'{platform.python_version()}, {platform.platform()}')
    for package in MINIMUM:
        yield package, partial(_package, package)
    yield "mmcv's operators", _mmcv_operators
    yield 'family', _family
    yield 'commands', _commands
    yield 'CPU', _cpu
    yield 'threads', _threads
    yield 'compiler', _compiler
    yield 'cache folder', _cache_folder
    yield 'GPU', _gpu
    yield 'CuPy', _cupy
    # Without torch there are no backends, as its row says.
    with suppress(Exception):
        from ..ops.backends import TABLE

        for name, row in TABLE.items():
            for device in row.devices or ('cpu', 'cuda'):
                yield f'backend {name} on {device}', partial(_backend, name, device)


def _cpu() -> Finding:
    import torch

    model, flags = platform.processor() or platform.machine(), ''
    if os.path.exists('/proc/cpuinfo'):
        fields = dict(re.findall(r'^([^\t\n]+)\t*: (.*)$', Path('/proc/cpuinfo').read_text(), re.MULTILINE))
        model, flags = fields.get('model name', model), fields.get('flags') or fields.get('Features') or ''
    known = [name for name in CAPABILITIES if name in flags.split()]
    return Finding(f'{model}: {" ".join(known)}; torch takes {torch.backends.cpu.get_cpu_capability()}')


def _threads() -> Finding:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    threads, variable = torch.get_num_threads(), os.environ.get('OMP_NUM_THREADS', 'not set')
    problem = (
        'threads that share a core wait for each other: set OMP_NUM_THREADS' if threads > (cores or threads) else ''
    )
    return Finding(f'{threads} of torch on {cores} cores, OMP_NUM_THREADS is {variable}', problem)


_distributions = cache(packages_distributions)


def _package(name: str) -> Finding:
    if find_spec(name) is None:
        return Finding('not installed')
    distributions = dict.fromkeys(_distributions().get(name, ()))
    try:
        require(name)
    except ImportError as error:
        return Finding(
            ', '.join(f'{each} {version(each)}' for each in distributions) or 'of no distribution', str(error)
        )
    here = import_module(name).__version__
    return Finding(f'{here} ({", ".join(distributions)})' if [*distributions] not in ([], [name]) else here)


def _mmcv_operators() -> Finding:
    if find_spec('mmcv') is None:
        return Finding('not installed')
    try:
        import_module('mmcv.ops')
    except Exception as error:
        remedy = 'detectors and segmentors need mmcv, not mmcv-lite, built for this torch'
        return Finding('missing', f'{type(error).__name__}: {error}: {remedy}')
    return Finding('loaded')


def _family() -> Finding:
    found = {each for package in MINIMUM for each in _distributions().get(package, ()) if package != 'torch'}
    families = {'OneDL' if each.startswith('onedl-') else 'OpenMMLab' for each in found}
    mixed = f'{", ".join(sorted(found))} overwrite or refuse each other: uninstall those of one family'
    return Finding(' and '.join(sorted(families)) or 'none', mixed if len(families) > 1 else '')


def _compiler() -> Finding:
    from ..ops.backends.cpu.build import find_compiler

    try:
        command = find_compiler()
    except RuntimeError as error:
        return Finding('none', str(error))
    text = subprocess.run([command[0], '--version'], capture_output=True, text=True).stdout
    return Finding(f'{os.path.basename(command[0])}: {text.partition(chr(10))[0]}')


def _gpu() -> Finding:
    import torch

    driver = ''
    if shutil.which('nvidia-smi'):
        query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
        driver = subprocess.run(query, capture_output=True, text=True).stdout.partition('\n')[0]
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = [f'{gpu.name} ({gpu.major}.{gpu.minor}, {gpu.total_memory >> 20} MiB)' for gpu in gpus]
        return Finding(f'{", ".join(names)}; driver {driver or "unknown"}, torch for CUDA {torch.version.cuda}')
    here = f'none that torch, for CUDA {torch.version.cuda}, can use'
    problem = f'the driver {driver} is there: update it, or install a torch for an older CUDA' if driver else ''
    return Finding(here, problem)


def _cupy() -> Finding:
    if find_spec('cupy') is None:
        return Finding('not installed')
    import cupy
    from cupy.cuda import nvrtc

    return Finding(f'{cupy.__version__}, NVRTC {".".join(map(str, nvrtc.getVersion()))}')


def _cache_folder() -> Finding:
    from ..ops.backends.cpu.build import cache_folder, check_private

    folder = cache_folder()
    problems = []
    if not folder.exists():
        nearest = next(parent for parent in folder.absolute().parents if parent.exists())
        if not os.access(nearest, os.W_OK | os.X_OK):
            problems.append('it cannot be made')
        here = 'not there yet'
    else:
        status = folder.stat()
        owner = 'yours' if not hasattr(os, 'geteuid') or status.st_uid == os.geteuid() else "another user's"
        libraries = list(folder.glob('*.so'))
        size = sum(file.stat().st_size for file in libraries) / 2**20
        here = f'{owner}, mode {status.st_mode & 0o7777:o}, {len(libraries)} libraries ({size:.1f} MiB)'
        try:
            check_private(folder)
        except OSError as error:
            problems.append(str(error))
        if not os.access(folder, os.W_OK | os.X_OK):
            problems.append('you cannot write there')
        if hasattr(os, 'ST_NOEXEC') and os.statvfs(folder).f_flag & os.ST_NOEXEC:
            problems.append('its file system does not let programs run')
    remedy = ': set MMREDNET_CACHE_DIR to a folder that is yours alone' if problems else ''
    return Finding(f'{folder}: {here}', ', '.join(problems) + remedy)


def _backend(name: str, device: str) -> Finding:
    import torch

    from ..ops import involution2d
    from ..ops.backends import find

    if not getattr(torch, device).is_available():
        return Finding('not tried', f'torch has no device {device!r} here')
    try:
        find(name, torch.device(device))
    except RuntimeError as error:
        return Finding('cannot be used', str(error))
    generator = torch.Generator().manual_seed(0)
    input, kernel = (torch.rand(shape, generator=generator).to(device) for shape in ((1, 32, 9, 9), (1, 2, 7, 7, 9, 9)))
    expected = involution2d(input, kernel, backend='reference')
    difference = (involution2d(input, kernel, backend=name) - expected).abs().max().item()
    problem = '' if difference < 1e-4 else f'it differs from the reference by {difference:.1e}: please report this'
    return Finding('works' if not problem else 'wrong', problem)


def _commands() -> Finding:
    broken = []
    for name in COMMANDS:
        try:
            import_module(f'{__package__}.{name.replace("-", "_")}')
        except Exception as error:
            broken.append(f'{name}: {type(error).__name__}: {error}')
    return Finding(', '.join(COMMANDS), '; '.join(broken))
