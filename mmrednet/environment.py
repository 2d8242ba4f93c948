"""Facts about this machine: devices, packages and versions. Torch is imported only where a fact needs it."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# CPU features that the native kernels can use, by their names in Linux.
CPU_FEATURES = ('avx2', 'fma', 'f16c', 'avx512f', 'avx512_bf16', 'avx512_fp16', 'amx_tile', 'asimd', 'sve')


def find_device(name: str | None = None) -> 'torch.device':
    """Returns a device on which tensors can be made.

    Args:
        name (str, optional): Its name, such as 'cpu' or 'cuda:1'. Defaults to None: a GPU, or the CPU where torch finds
            no GPU.

    Raises:
        ValueError: No tensor can be made on this device.
    """
    import torch

    try:
        return torch.empty(0, device=name or ('cuda' if torch.cuda.is_available() else 'cpu')).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition('\n')[0].partition('. ')[0]  # pages of backends may follow
        raise ValueError(f'device {name!r} cannot be used ({reason}): give another, such as cpu') from error


def cpu() -> tuple[str, list[str]]:
    """Returns the CPU's name and which of ``CPU_FEATURES`` it has."""
    file = Path('/proc/cpuinfo')
    fields = dict(re.findall(r'^([^\t\n]+)\t*: (.*)$', file.read_text(), re.MULTILINE)) if file.exists() else {}
    name = fields.get('model name') or platform.processor() or platform.machine()
    flags = (fields.get('flags') or fields.get('Features') or '').split()
    return name, [feature for feature in CPU_FEATURES if feature in flags]


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def query_driver(*fields: str, gpu: str = '') -> dict[str, str]:
    """Returns fields that ``nvidia-smi --query-gpu`` reports.

    Args:
        *fields (str): Names of fields, such as 'driver_version'.
        gpu (str): The UUID of a GPU. Defaults to '', the first GPU.

    Raises:
        FileNotFoundError: There is no nvidia-smi.
        RuntimeError: nvidia-smi does not report these fields.
    """
    if not shutil.which('nvidia-smi'):
        raise FileNotFoundError('there is no nvidia-smi')
    command = ['nvidia-smi', f'--query-gpu={",".join(fields)}', '--format=csv,noheader']
    if gpu:
        command.append(f'--id=GPU-{gpu.removeprefix("GPU-")}')
    answer = subprocess.run(command, capture_output=True, text=True)
    values = [value.strip() for value in answer.stdout.partition('\n')[0].split(',')]
    if answer.returncode or len(values) != len(fields):
        text = ' '.join((answer.stdout + answer.stderr).split())
        raise RuntimeError(f'nvidia-smi reports: {text[:300]}')
    return dict(zip(fields, values, strict=True))


def versions(*packages: str) -> str:
    """Returns the versions of Python and of those packages that are installed, in one line."""
    found = [f'Python {platform.python_version()}']
    for name in packages:
        with suppress(ImportError):
            found.append(f'{name} {import_module(name).__version__}')
    return ', '.join(found)


def commit() -> str:
    """Returns the git commit of this checkout, with '-dirty' where files have changed, or '' outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / '.git').exists() or not shutil.which('git'):
        return ''
    command = ['git', '-C', str(root), 'describe', '--always', '--dirty', '--abbrev=12']
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def describe_machine(device: 'str | torch.device' = 'cpu', packages: Sequence[str] = ()) -> dict[str, str]:
    """Returns the facts that every measurement needs: processor, versions and today's date.

    Args:
        device (str or torch.device): The device that was measured. Defaults to 'cpu'.
        packages (Sequence[str]): Packages that took part besides torch, CuPy and the toolboxes. Defaults to none.
    """
    import torch

    if torch.device(device).type == 'cuda':
        machine = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        machine = f'{cpu()[0]}, {torch.backends.cpu.get_cpu_capability()}, {threads} thread{"s"[: threads > 1]}'
    installed = versions('torch', 'cupy', 'mmcv', 'mmpretrain', *packages)
    return {'machine': machine, 'versions': installed, 'date': date.today().isoformat()}


def describe_gpu(device: 'torch.device') -> dict[str, str]:
    """Returns a GPU's properties, driver, clocks and libraries."""
    import torch

    gpu = torch.cuda.get_device_properties(device)
    about = {
        'GPU': f'compute capability {gpu.major}.{gpu.minor}, {gpu.multi_processor_count} multiprocessors, '
        f'{gpu.total_memory / 2**30:.0f} GiB',
        **driver_and_clocks(str(getattr(gpu, 'uuid', ''))),
        'CUDA': f'{torch.version.cuda} of torch, cuDNN {torch.backends.cudnn.version()}',
    }
    with suppress(Exception):  # CuPy's errors are of several kinds
        about['CUDA'] += f', NVRTC {nvrtc_version()}'
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    return {**about, 'TF32': f'convolutions {convolutions}, matrix products {products}'}


def driver_and_clocks(gpu: str) -> dict[str, str]:
    """Returns the driver of a GPU, its clocks, power limit and temperature, or why they are not known."""
    clocks = 'clocks.sm', 'clocks.max.sm', 'clocks.mem', 'clocks.max.mem'
    try:
        found = query_driver('driver_version', *clocks, 'power.limit', 'temperature.gpu', 'ecc.mode.current', gpu=gpu)
    except (OSError, RuntimeError) as error:
        return {'driver': f'not known: {error}'}
    return {'driver': found.pop('driver_version'), 'clocks': ', '.join(f'{k} {v}' for k, v in found.items())}


def nvrtc_version() -> str:
    """Returns the version of CuPy's run-time compiler."""
    from cupy.cuda import nvrtc

    return '.'.join(map(str, nvrtc.getVersion()))
