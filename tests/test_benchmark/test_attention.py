"""Every way to compute local attention gives the numbers of loops in float64."""

from functools import partial

import pytest
import torch

from mmrednet.benchmark.attention import CANDIDATES, Attention, attention_step, benchmark_attention, stand_alone

BORDERS = ('zeros', 'mask')


def loops(problem, query, key, value, rows, columns):
    """Computes Stand-Alone's eq. 3, pixel by pixel, head by head and tap by tap."""
    (height, width), k = problem.size, problem.kernel_size
    out = torch.zeros_like(query)
    for n in range(problem.batch):
        for head in range(problem.heads):
            d = problem.channels // problem.heads
            own = slice(head * d, head * d + d)
            for i in range(height):
                for j in range(width):
                    logits, values = [], []
                    for u in range(k):
                        for v in range(k):
                            y, x = i + u - k // 2, j + v - k // 2
                            inside = 0 <= y < height and 0 <= x < width
                            if not inside and problem.border == 'mask':
                                continue
                            position = torch.cat([rows[:, u], columns[:, v]])
                            content = key[n, own, y, x] if inside else 0
                            logits.append(query[n, own, i, j] @ (content + position))
                            values.append(value[n, own, y, x] if inside else torch.zeros(d, dtype=query.dtype))
                    out[n, own, i, j] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return out


@pytest.mark.parametrize('border', BORDERS)
@pytest.mark.parametrize('candidate', CANDIDATES)
def test_each_candidate_is_the_formula(monkeypatch, candidate, border):
    # Inductor takes a minute. FlexAttention computes the same uncompiled.
    monkeypatch.setattr(torch, 'compile', lambda f, **_: f)
    problem = Attention(8, (4, 5), 3, heads=2, border=border, batch=2, dtype=torch.float64)
    torch.manual_seed(0)
    inputs = problem.inputs()
    out = CANDIDATES[candidate](problem)(*inputs)
    assert torch.allclose(out, loops(problem, *inputs))
    if candidate == 'compiled flex':  # it has no gradients on a CPU
        return
    for tensor in inputs:
        tensor.requires_grad_()
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(loops(problem, *inputs), inputs, grad)
    actual = torch.autograd.grad(CANDIDATES[candidate](problem)(*inputs), inputs, grad)
    assert all(map(torch.allclose, actual, expected))


def test_candidates_are_timed_and_their_memory_measured(monkeypatch):
    monkeypatch.setattr('mmrednet.benchmark.attention.peak_memory', lambda build, *_: (build()(), 3 << 20)[1])
    problems = [Attention(16, (6, 6), batch=2, phase=phase) for phase in ('forward', 'training')]
    results = list(benchmark_attention(problems, budget=0))
    plain = ['layer', 'unfold', 'taps', 'dense']
    assert [r.candidate for r in results] == 4 * plain
    assert [(r.labels['phase'], r.unit) for r in results[::4]] == [
        (phase, unit) for unit in ('ms', 'MiB') for phase in ('forward', 'training')
    ]
    assert {r.samples for r in results if r.unit == 'MiB'} == {(3.0,)}


def test_candidates_that_do_not_apply(monkeypatch):
    monkeypatch.setattr(torch, 'compile', lambda f, **_: f)
    monkeypatch.setattr('mmrednet.benchmark.attention.peak_memory', lambda *_: 0)
    monkeypatch.setattr('mmrednet.benchmark.attention.LARGEST', 0)
    names = partial(benchmark_attention, budget=0, compiled=True)
    forward, training = (
        [r.candidate for r in names([Attention(16, (6, 6), phase=phase)]) if r.unit == 'ms']
        for phase in ('forward', 'training')
    )
    assert forward == ['layer', 'unfold', 'taps', 'compiled taps', 'compiled flex']
    assert training == ['layer', 'unfold', 'taps', 'compiled taps']


def test_forward_records_no_gradients():
    assert not attention_step('layer', Attention(16, (6, 6)))().requires_grad
    assert len(attention_step('layer', Attention(16, (6, 6), phase='training'))()) == 5


def test_shapes_of_stand_alone_resnet():
    problems = stand_alone((2,), (torch.float32,), 'cpu')
    shapes = [(p.channels, p.size, p.border) for p in problems[::2]]
    stages = [(64, (56, 56)), (128, (28, 28)), (256, (14, 14)), (512, (7, 7))]
    assert shapes == [(*stage, 'zeros') for stage in stages] + [(*stage, 'mask') for stage in stages[2:]]
    assert {p.phase for p in problems} == {'forward', 'training'} and {p.batch for p in problems} == {2}
