"""Probes of this machine: they examine packages, compiler, cache folder, devices and backends, and report problems.

A probe imports only what it examines, and most probes import torch.
"""

import os
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from typing import NamedTuple

from . import __version__
from .environment import cores, cpu, driver_and_clocks, nvrtc_version
from .requirements import MINIMUM, require
from .workers import Item, Job, run_jobs

TIMEOUT = 600  # seconds for a process: a kernel may have to be compiled


class Finding(NamedTuple):
    """The result of a probe: what is installed or present, and its problem ('' without a problem)."""

    here: str
    problem: str = ''


def diagnose(*lists: Callable[[], Sequence[Item]]) -> dict[str, Finding]:
    """Runs the probes that functions such as :func:`machine_probes` return, and returns their findings by name.

    The probes run in separate processes, so that a broken package ends only its own probe. Paths of folders and the
    user's name are removed from the findings.
    """
    findings: dict[str, Finding] = {}
    for probes in lists:
        start = 0
        while True:
            job = Job(probes_from, (probes.__module__, probes.__name__, start))
            ((planned, found, end, _),) = run_jobs([job], TIMEOUT)
            findings |= zip(planned, (Finding(*finding) for finding in found), strict=False)
            if not planned and end:
                findings['this report'] = Finding('broken', f'the process of {probes.__name__} ends early ({end})')
            if len(found) == len(planned):
                break
            findings[planned[len(found)]] = Finding('broken', f'examining it ends the process ({end})')
            start += len(found) + 1
    return {name: _without_folders(finding) for name, finding in findings.items()}


def _without_folders(finding: Finding) -> Finding:
    home = os.path.expanduser('~')
    here = finding.here.replace(home, '~') if len(home) > 1 else finding.here
    return Finding(here, re.sub(r'(?<![\w.:/~])/([^\s:\'"/]+/)+', '', finding.problem))


def probes_from(module: str, function: str, start: int) -> list[Item]:
    """Returns the probes of a list from the index ``start`` on. An error in a probe becomes its finding."""
    probes = getattr(import_module(module), function)()
    return [(name, partial(_try, probe)) for name, probe in probes[start:]]


def _try(probe: Callable[[], Finding]) -> Finding:
    try:
        return probe()
    except BaseException as error:  # packages also call sys.exit
        return Finding('broken', f'{type(error).__name__}: {error}')


def machine_probes() -> list[Item]:
    """Returns the probes of packages, CPU, compiler, cache folder and GPU."""
    return [
        ('mmrednet', lambda: Finding(__version__)),
        ('Python', lambda: Finding(f'{platform.python_version()}, {platform.platform()}')),
        *((package, partial(_package, package)) for package in MINIMUM),
        ("mmcv's operators", _mmcv_operators),
        ('family', _family),
        ('CPU', _cpu),
        ('threads', _threads),
        ('compiler', _compiler),
        ('cache folder', _cache_folder),
        ('GPU', _gpu),
        ('CuPy', _cupy),
    ]


def backend_probes() -> list[Item]:
    """Returns a probe for each backend and each type of device that it supports, or none if torch is broken."""
    try:
        from .ops.backends import TABLE
    except Exception:  # the probe of torch reports it
        return []
    return [
        (f'backend {name} on {device}', partial(_backend, name, device))
        for name, row in TABLE.items()
        for device in row.devices or ('cpu', 'cuda')
    ]


_distributions = cache(packages_distributions)


def _package(name: str) -> Finding:
    if find_spec(name) is None:
        return Finding('not installed')
    distributions = dict.fromkeys(_distributions().get(name, ()))
    try:
        require(name)
    except ImportError as error:
        installed = ', '.join(f'{each} {version(each)}' for each in distributions)
        return Finding(installed or 'of no distribution', str(error))
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


def _cpu() -> Finding:
    import torch

    name, features = cpu()
    return Finding(f'{name}: {" ".join(features)}; torch uses {torch.backends.cpu.get_cpu_capability()}')


def _threads() -> Finding:
    import torch

    threads, variable = torch.get_num_threads(), os.environ.get('OMP_NUM_THREADS', 'not set')
    here = f'{threads} of torch on {cores()} cores, OMP_NUM_THREADS is {variable}'
    problem = 'threads that share a core wait for each other: set OMP_NUM_THREADS to the number of cores'
    return Finding(here, problem if threads > cores() else '')


def _compiler() -> Finding:
    from .ops.backends.cpu.build import find_compiler

    try:
        command = find_compiler()
    except RuntimeError as error:
        return Finding('none', str(error))
    text = subprocess.run([command[0], '--version'], capture_output=True, text=True).stdout
    return Finding(f'{os.path.basename(command[0])}: {text.partition(chr(10))[0]}')


def _cache_folder() -> Finding:
    from .ops.backends.cpu.build import cache_folder, check_private

    folder = cache_folder()
    if not folder.exists():
        nearest = next(parent for parent in folder.absolute().parents if parent.exists())
        problems = [] if os.access(nearest, os.W_OK | os.X_OK) else ['it cannot be made']
        here = 'does not exist yet'
    else:
        problems = []
        status = folder.stat()
        owner = 'yours' if not hasattr(os, 'geteuid') or status.st_uid == os.geteuid() else "another user's"
        sizes = [file.stat().st_size for file in folder.glob('*.so')]
        here = f'{owner}, mode {status.st_mode & 0o7777:o}, {len(sizes)} libraries ({sum(sizes) / 2**20:.1f} MiB)'
        try:
            check_private(folder)
        except OSError as error:
            problems.append(str(error))
        if not os.access(folder, os.W_OK | os.X_OK):
            problems.append('you cannot write there')
        if hasattr(os, 'ST_NOEXEC') and os.statvfs(folder).f_flag & os.ST_NOEXEC:
            problems.append('its file system does not allow programs to run')
    remedy = ': set MMREDNET_CACHE_DIR to a folder that is yours alone' if problems else ''
    return Finding(f'{folder}: {here}', ', '.join(problems) + remedy)


def _gpu() -> Finding:
    import torch

    facts = driver_and_clocks()
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = ', '.join(f'{gpu.name} ({gpu.major}.{gpu.minor}, {gpu.total_memory >> 20} MiB)' for gpu in gpus)
        return Finding(f'{names}; driver {facts["driver"]}, torch for CUDA {torch.version.cuda}')
    problem = f'the driver {facts["driver"]} is installed: update it, or install a torch for an older CUDA'
    here = f'none that torch, built for CUDA {torch.version.cuda}, can use'
    return Finding(here, problem if 'clocks' in facts else '')


def _cupy() -> Finding:
    if find_spec('cupy') is None:
        return Finding('not installed')
    return Finding(f'{import_module("cupy").__version__}, NVRTC {nvrtc_version()}')


def _backend(name: str, device: str) -> Finding:
    import torch

    from .ops import involution2d
    from .ops.backends import find

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
    return Finding('wrong' if problem else 'works', problem)
