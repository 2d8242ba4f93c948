"""Helpers of several tests: paths, the operators' grid and tolerances, and processes that lack a package."""

import json
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import cache, partial
from hashlib import sha256
from importlib import import_module
from math import prod
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmrednet.ops import fused_involution2d, involution2d
from mmrednet.ops.arguments import output_size, pair, same_padding
from mmrednet.ops.backends import TABLE, Row
from mmrednet.ops.tolerances import FUSED, TOLERANCE

ROOT = Path(__file__).parents[1]
DATA = ROOT / 'tests' / 'data'
RELEASED = json.loads((DATA / 'released_checkpoint_keys.json').read_text())  # names and shapes of parameters

# (N, C, H, W), G, (Kh, Kw), stride, padding, dilation
CASES = [
    ((2, 32, 14, 14), 2, (7, 7), 1, None, 1),
    ((1, 64, 56, 56), 4, (7, 7), 1, None, 1),
    ((2, 32, 15, 13), 2, (7, 7), 2, None, 1),
    ((1, 32, 28, 28), 2, (3, 3), 1, None, 1),
    ((1, 48, 9, 33), 3, (5, 5), 2, None, 1),
    ((1, 16, 20, 17), 1, (9, 9), 1, None, 1),
    ((2, 8, 1, 1), 2, (7, 7), 1, None, 1),
    ((1, 8, 1, 1), 1, (7, 7), 2, None, 1),
    ((1, 8, 3, 2), 2, (7, 7), 2, None, 1),
    ((1, 6, 11, 12), 6, (3, 3), 1, None, 2),
    ((2, 6, 10, 9), 1, (3, 3), 2, None, 3),
    ((1, 12, 8, 11), 3, (3, 5), (2, 1), None, (1, 2)),
    ((1, 4, 6, 8), 4, (1, 7), 3, (0, 2), 1),
    ((1, 4, 7, 8), 2, (2, 4), 2, (1, 0), 1),
    ((1, 4, 5, 5), 2, (3, 3), 1, 4, 1),
    ((1, 4, 9, 9), 2, (5, 5), 1, 0, 1),
    ((1, 5, 40, 70), 1, (3, 3), 1, None, 1),
    ((0, 8, 6, 5), 2, (3, 3), 2, None, 1),
]
REDUCED = 6  # channels R that the fused operator's kernels are made from


def backends():
    """Returns each backend, and None, with each device that it is for, marked where there is no such device."""
    return [
        pytest.param(
            (name, device),
            marks=pytest.mark.skipif(not getattr(torch, device).is_available(), reason=f'no device {device!r}'),
        )
        for name, row in {None: Row(''), **TABLE}.items()
        for device in row.devices or ('cpu', 'cuda')
    ]


def make_arguments(shape, groups, kernel_size, stride, padding, dilation, dtype, device, channels_last=False):
    """Returns (input, kernel), the gradient of the output, and (stride, padding, dilation)."""
    stride, dilation = pair('stride', stride, 1), pair('dilation', dilation, 1)
    padding = same_padding(kernel_size, dilation) if padding is None else pair('padding', padding, 0)
    size = output_size(shape[2:], kernel_size, stride, padding, dilation)
    generator = torch.Generator().manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def normal(n, c, *hw):
        values = torch.randn((n, c, *hw), generator=generator, dtype=torch.float64)
        return values.to(device, dtype, memory_format=memory_format)

    input = normal(*shape).requires_grad_()
    kernel = normal(shape[0], groups * prod(kernel_size), *size).unflatten(1, (groups, *kernel_size)).requires_grad_()
    return (input, kernel), normal(*shape[:2], *size), (stride, padding, dilation)


def make_fused_arguments(shape, groups, kernel_size, stride, padding, dilation, dtype, device, channels_last=False):
    """Returns (input, features, weight, bias), the gradient of the output, and (kernel_size, stride, ...)."""
    (input, kernel), grad_output, geometry = make_arguments(
        shape, groups, kernel_size, stride, padding, dilation, dtype, device, channels_last
    )
    generator = torch.Generator().manual_seed(1)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(input)

    features = normal(shape[0], REDUCED, *kernel.shape[4:]).contiguous(memory_format=memory_format)
    weight = normal(groups * prod(kernel_size), REDUCED, 1, 1)
    tensors = [t.detach().requires_grad_() for t in (input, features, weight, normal(weight.shape[0]))]
    return tensors, grad_output, (kernel_size, *geometry)


def unfused(input, features, weight, bias, kernel_size, *geometry):
    """Returns the truth for fused_involution2d: PyTorch's convolution, then the reference."""
    kernel = F.conv2d(features, weight, bias).unflatten(1, (-1, *kernel_size))
    return involution2d(input, kernel, *geometry, backend='reference')


_truths: dict = {}
TRUTH = {involution2d: partial(involution2d, backend='reference'), fused_involution2d: unfused}


def run(operator, tensors, grad_output, geometry, **options):
    """Returns the operator's output and the gradients of its tensors."""
    output = operator(*tensors, *geometry, **options)
    return output, *torch.autograd.grad(output, tensors, grad_output)


def truth(operator, tensors, grad_output, geometry):
    """Returns what :func:`run` should return in float64, and the scale of its rounding errors."""
    values = [t.detach().to('cpu', torch.float64).contiguous() for t in (*tensors, grad_output)]
    key = operator, geometry, *((v.shape, sha256(v.numpy().tobytes()).digest()) for v in values)
    if key not in _truths:  # once for all backends and layouts
        _truths[key] = [
            run(TRUTH[operator], [f(v).requires_grad_() for v in values[:-1]], f(values[-1]), geometry)
            # The same sums of absolute values are the scale of rounding errors.
            for f in (torch.clone, torch.abs)
        ]
    return _truths[key]


def check(operator, actual, tensors, grad_output, geometry):
    """Compares what :func:`run` returns with the truth."""
    exact, scale = truth(operator, tensors, grad_output, geometry)
    tolerance = TOLERANCE[grad_output.dtype] * (FUSED if operator is fused_involution2d else 1)
    for i, (a, e, s) in enumerate(zip(actual, exact, scale, strict=True)):
        assert a.dtype == grad_output.dtype
        assert a.shape == e.shape
        error = (a.to('cpu', torch.float64) - e).abs()
        assert (error <= tolerance * s + 1e-300).all(), f'{f"gradient {i}" if i else "output"}: {(error / s).max()}'


_complexities: dict = {}


def complexity(row):
    """Returns what ``measure`` counts for a row of the paper's tables, once for all tests."""
    from mmrednet.complexity.tables import measure

    if (key := repr(row)) not in _complexities:
        _complexities[key] = measure(row)
    return _complexities[key]


class ConstantKernel(nn.Module):
    """A user's kernel generation function: the same kernel for every pixel."""

    def __init__(self, channels, groups, kernel_size, stride, padding, dilation, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, groups * kernel_size[0] * kernel_size[1], 1, 1), scale))

    def forward(self, x):
        return self.weight.expand(x.shape[0], -1, *x.shape[2:])


def registry(scope):
    """Returns a toolbox's registry of models, in the scope of its configs."""
    from mmengine.registry import init_default_scope

    init_default_scope(scope)
    return import_module(f'{scope}.registry').MODELS


def cells(text):
    """Returns the rows of a text's Markdown tables."""
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('|')]


def hide(*packages):
    """Returns code that hides these packages from a process."""
    return f'import sys\nsys.modules.update(dict.fromkeys({packages!r}))\n'


# Runs the code of the first argument, and then each code that it reads in a copy of the process.
COPIES = """
import json, os, sys
exec(sys.argv[1])
for line in sys.stdin:
    code, output = json.loads(line)
    copy = os.fork()
    if not copy:
        for number, file in ((0, os.devnull), (1, output), (2, output)):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
        sys.exit(exec(code, {'__name__': '__main__'}))
    print(os.waitpid(copy, 0)[1], flush=True)
"""
# Packages of others that the toolboxes import. They take most of the time of such an import.
COMMON_IMPORTS = 'import matplotlib.pyplot, mmcv.ops, mmengine.runner, scipy.optimize, torchvision'
TORCH_ALONE = (
    hide('mmcv', 'mmengine', 'mmdet', 'mmseg', 'mmpretrain', 'cupy', 'numpy', 'cv2', 'matplotlib') + 'import torch'
)


@cache
def _copied(first):
    command = [sys.executable, '-W', 'ignore', '-c', COPIES, first]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_python(code, first=COMMON_IMPORTS):
    """Runs code in a process of its own, and returns its output.

    The code ``first`` runs before it. It runs once for all calls that give the same: each gets a copy of its process.
    """
    process = _copied(first)
    with tempfile.NamedTemporaryFile() as output:
        print(json.dumps([code, output.name]), file=process.stdin, flush=True)
        status = process.stdout.readline()
        text = Path(output.name).read_text()
    assert status == '0\n', text
    return text


@contextmanager
def small_disk(folder, size):
    """Mounts a file system in memory with room for ``size`` bytes. The test is skipped if only root may do so."""
    folder.mkdir()
    options = f'size={size},mode=700'
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder], capture_output=True).returncode:
        pytest.skip('only root may mount a file system')
    try:
        yield folder
    finally:
        subprocess.run(['umount', folder], check=True)


def mark_full(cases, quick):
    """Returns a parameter for each case of a dict. All are marked full except those with a name in ``quick``."""
    return [
        pytest.param(case, id=name, marks=[] if name in quick else pytest.mark.full) for name, case in cases.items()
    ]


def check_cases(request, strategy, check, parts=1):
    """Calls ``check`` with the cases that hypothesis draws: ``--cases`` divided by ``parts``, the same in every run."""
    from hypothesis import HealthCheck, given, settings

    count = max(1, request.config.getoption('--cases') // parts)
    quiet = dict(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    settings(max_examples=count, derandomize=True, **quiet)(given(strategy)(check))()


def keep_figures(monkeypatch) -> list:
    """Returns a list that gets each figure of matplotlib that is saved from now on."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig

    def savefig(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, 'savefig', savefig)
    return figures
