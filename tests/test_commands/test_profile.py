"""What an involution of one's own costs, and those of a network."""

import pytest
import torch
from helpers import cells

from mmrednet.__main__ import main
from mmrednet.benchmark.candidates import Case, rednet_cases
from mmrednet.commands import profile
from mmrednet.commands.profile import cuda_plan
from mmrednet.ops import backends
from mmrednet.ops.backends import explain
from mmrednet.ops.backends.cuda.plan import Device

CPU = torch.device('cpu')


def report(capsys, *arguments):
    assert main(['profile', '--device', 'cpu', '--budget', '0', *arguments]) == 0
    text = capsys.readouterr().out
    return text, cells(text)


def test_an_involution(capsys):
    text, rows = report(capsys, *'--input 2 32 9 12 --kernel-size 3 5 --stride 2 1 --dilation 1 2'.split())
    assert '32x9x12, K = 3x5, stride 2x1, dilation 1x2, 2 groups, batch 2, to 5x12 pixels' in text
    assert ['cuda', 'is for tensors on cuda'] in rows and sum('is used' in row[1] for row in rows) == 1
    times = {(row[0], row[1]): row[2:] for row in rows if row[0] in ('forward', 'backward')}
    names = {'a copy of the bytes', 'backend torch', 'reference (unfold)', 'depthwise convolution'}
    for phase, passes in (('forward', 1), ('backward', 2)):
        assert names <= {name for p, name in times if p == phase}
        moved = 4 * 2 * (passes * (32 * 9 * 12 + 2 * 15 * 60) + 32 * 60)
        assert f'{phase}: at least {moved / 2**20:.1f} MiB' in text
        ms, _, rate, percent = times[phase, 'backend torch']
        assert float(rate) == pytest.approx(moved / float(ms) / 1e6, rel=0.02)
        assert float(percent) == pytest.approx(100 * float(times[phase, 'a copy of the bytes'][0]) / float(ms), abs=1)
        ordered = [float(row[2]) for row in rows if row[0] == phase]
        assert ordered == sorted(ordered)
        assert times[phase, 'depthwise convolution'][2:] == ['', '']  # it moves other bytes


def test_what_would_take_too_much_memory_is_left_out(capsys, monkeypatch):
    monkeypatch.setattr(profile, 'LARGEST', 16 * 49 * 36 * 4 - 1)
    text, rows = report(capsys, *'--input 1 16 6 6'.split())
    assert 'reference was left out: its windows take' in text
    assert not any('reference' in cell for row in rows for cell in row)


def test_why_a_backend_computes(monkeypatch):
    def find(name, device):
        if name == 'cpu':
            raise RuntimeError("backend 'cpu' cannot be used: there is no C++ compiler")
        return real(name, device)

    real = backends.find
    monkeypatch.setattr(backends, 'find', find)
    chosen, rows = explain(CPU)
    assert chosen == 'torch' and dict(rows) == {
        'cpu': "backend 'cpu' cannot be used: there is no C++ compiler",
        'cuda': 'is for tensors on cuda',
        'torch': 'is used: the first that works',
    }


def test_the_plan_of_cuda_kernels_needs_no_gpu():
    for limits, kernels in ((Device(), 'pixels'), (Device(shared=64 << 10, tensor_cores=True), 'bands')):
        (text,) = cuda_plan(Case(64, (56, 56), groups=4), 8, torch.bfloat16, True, limits)
        lines = text.splitlines()[2:]
        assert [line.split(':')[0] for line in lines] == ['- forward', '- grad_input', '- grad_kernel']
        assert all('kernel_size (7, 7)' in line and f'kernels {kernels}' in line for line in lines)
        for line in lines:
            words = line.split()
            assert int(words[2]) * int(words[5]) >= 56 * 56 // 4  # a thread has a strip of pixels at most
    (text,) = cuda_plan(Case(16, (9, 9), (9, 9), dilation=(99, 99)), 1, torch.float32, False, Device())
    assert '- forward: no kernel, since shared memory cannot hold a window: backend torch computes' in text


def test_a_network(capsys):
    text, rows = report(capsys, *'--input 1 3 32 32 --network rednet26'.split())
    rows = [row for row in rows if row[0].startswith('backbone.')]
    assert [row[2] for row in rows] == [f'1x{case}' for case in rednet_cases(26, (32, 32))]
    assert sum(int(row[1]) for row in rows) == 9 and '9 calls of involution layers' in text
    total = sum(float(row[4]) for row in rows)
    assert f'{total:.0f}%' in text or f'{total - 0.5:.0f}%' in text or f'{total + 0.5:.0f}%' in text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('--input 1 16 0 6', '--input must be four positive numbers'),
        ('--input 1 16 6 6 --groups 3', '--groups must divide the channels, 16, but is 3'),
        ('--input 1 16 6 6 --stride 1 2 3', '--stride must be one or two positive numbers'),
        ('--input 1 16 6 6 --device tpu7', '--device tpu7 cannot be used'),
        ('--input 1 16 6 6 --kernel-size 3 4', '--kernel-size must be odd, but is [3, 4]'),
        ('--input 1 3 32 32 --network rednet26 --kernel-size 3', '--kernel-size is for one involution'),
        ('--input 1 3 32 32 --network rednet26 --compiled', '--compiled is for one involution'),
        ('--input 1 3 32 32 --network resnet', "no config is named 'resnet'"),
    ],
)
def test_what_cannot_be_profiled(capsys, arguments, message):
    assert main(['profile', *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_a_network_without_involutions(capsys):
    network = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
    assert main(['profile', '--input', *'1 3 32 32'.split(), '--network', network]) == 2
    assert 'no involution' in capsys.readouterr().err
