import numpy as np
import pytest

from mmrednet.benchmark import timing
from mmrednet.benchmark.timing import Result, time_in_turns


@pytest.mark.parametrize(
    'samples', [(4.0,), (3.0, 1.0, 2.0), (1.0, 2.0, 3.0, 4.0), tuple(np.geomspace(1, 2, 38)[::-1])]
)
def test_median_and_interquartile_range(samples):
    result = Result({}, 'cpu', 'ms', samples)
    low, middle, high = np.percentile(samples, (25, 50, 75))
    assert result.median == pytest.approx(middle) and result.iqr == pytest.approx(high - low)


def fake_clock(monkeypatch, seconds):
    calls = []

    def measure(step, count, device):
        calls.append((step, count))
        return seconds * count

    monkeypatch.setattr(timing, '_seconds', measure)
    return calls


def test_each_candidate_has_one_turn_in_every_round(monkeypatch):
    log = fake_clock(monkeypatch, 1e-3)
    samples = time_in_turns(dict(a='a', b='b', c='c'), 'cpu', budget=0)
    assert log[:6] == [(name, 1) for name in 'aabbcc']
    turns = [step for step, _ in log[6:]]
    rounds = [turns[i : i + 3] for i in range(0, len(turns), 3)]
    assert len(rounds) == 7 and all(sorted(turn) == ['a', 'b', 'c'] for turn in rounds)
    assert len(set(map(tuple, rounds))) > 1
    # A call takes 1 ms, so a sample of 2 ms has two calls. Its time is divided by their number.
    assert {count for _, count in log[6:]} == {2}
    assert samples == {name: pytest.approx([1e-3] * 7) for name in 'abc'}


@pytest.mark.parametrize(('budget', 'rounds', 'expected'), [(10, (2, 100), 4), (0, (2, 100), 2), (1e9, (2, 5), 5)])
def test_budget(monkeypatch, budget, rounds, expected):
    fake_clock(monkeypatch, 1.0)
    samples = time_in_turns(dict(a='a', b='b', c='c'), 'cpu', budget=budget, rounds=rounds)
    assert {name: len(taken) for name, taken in samples.items()} == dict(a=expected, b=expected, c=expected)
