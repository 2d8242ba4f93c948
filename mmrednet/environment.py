"""Facts about this machine: devices, packages and versions. Torch is imported only for the facts that need it."""

import os
import platform
import re
import shutil
import subprocess
from contextlib import suppress
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# CPU features that the native kernels can use, by their names in Linux.
CPU_FEATURES = ('avx2', 'fma', 'f16c', 'avx512f', 'avx512_bf16', 'avx512_fp16', 'amx_tile', 'asimd', 'sve')
DRIVER_FIELDS = (
    *('driver_version', 'clocks.sm', 'clocks.max.sm', 'clocks.mem', 'clocks.max.mem'),
    *('power.limit', 'temperature.gpu', 'ecc.mode.current'),
)


def find_device(name: str | None = None) -> 'torch.device':
    """Returns the device with this name, such as 'cuda:1'. The default is a GPU, or the CPU if torch finds no GPU.

    Raises ValueError if no tensor can be made on the device.
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


def versions(*packages: str) -> str:
    """Returns the versions of Python and of those packages that are installed, in one line."""
    found = [f'Python {platform.python_version()}']
    for name in packages:
        with suppress(ImportError):
            found.append(f'{name} {import_module(name).__version__}')
    return ', '.join(found)


def commit() -> str:
    """Returns the git commit of this checkout, with '-dirty' if files have changed, or '' outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / '.git').exists() or not shutil.which('git'):
        return ''
    command = ['git', '-C', str(root), 'describe', '--always', '--dirty', '--abbrev=12']
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def describe_machine(device: 'str | torch.device' = 'cpu') -> dict[str, str]:
    """Returns the facts for every measurement: the processor, versions and today's date."""
    import torch

    if torch.device(device).type == 'cuda':
        machine = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        machine = f'{cpu()[0]}, {torch.backends.cpu.get_cpu_capability()}, {threads} thread{"s"[: threads > 1]}'
    installed = versions('torch', 'cupy', 'mmcv', 'mmpretrain')
    return {'machine': machine, 'versions': installed, 'date': date.today().isoformat()}


def describe_gpu(device: 'torch.device') -> dict[str, str]:
    """Returns a GPU's properties, driver, clocks and libraries."""
    import torch

    gpu = torch.cuda.get_device_properties(device)
    cuda, cudnn = f'{torch.version.cuda} of torch', torch.backends.cudnn
    with suppress(Exception):  # CuPy's errors are of several kinds
        cuda += f', NVRTC {nvrtc_version()}'
    return {
        'GPU': f'compute capability {gpu.major}.{gpu.minor}, {gpu.multi_processor_count} multiprocessors, '
        f'{gpu.total_memory / 2**30:.0f} GiB',
        **driver_and_clocks(str(getattr(gpu, 'uuid', ''))),
        'CUDA': f'{cuda}, cuDNN {cudnn.version()}',
        'TF32': f'convolutions {cudnn.allow_tf32}, matrix products {torch.backends.cuda.matmul.allow_tf32}',
    }


def driver_and_clocks(gpu: str = '') -> dict[str, str]:
    """Returns the 'driver' and 'clocks' of a GPU from nvidia-smi. If that fails, only 'driver', with the reason.

    ``gpu`` is its UUID. Defaults to '', the first GPU.
    """
    if not shutil.which('nvidia-smi'):
        return {'driver': 'not known: there is no nvidia-smi'}
    command = ['nvidia-smi', f'--query-gpu={",".join(DRIVER_FIELDS)}', '--format=csv,noheader']
    if gpu:
        command.append(f'--id=GPU-{gpu.removeprefix("GPU-")}')
    answer = subprocess.run(command, capture_output=True, text=True)
    values = [value.strip() for value in answer.stdout.partition('\n')[0].split(',')]
    if answer.returncode or len(values) != len(DRIVER_FIELDS):
        text = ' '.join((answer.stdout + answer.stderr).split())
        return {'driver': f'not known: nvidia-smi reports: {text[:300]}'}
    clocks = ', '.join(f'{name} {value}' for name, value in zip(DRIVER_FIELDS[1:], values[1:], strict=True))
    return {'driver': values[0], 'clocks': clocks}


def nvrtc_version() -> str:
    """Returns the version of CuPy's run-time compiler."""
    from cupy.cuda import nvrtc

    return '.'.join(map(str, nvrtc.getVersion()))
