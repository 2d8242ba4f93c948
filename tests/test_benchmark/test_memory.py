from functools import partial
from pathlib import Path

import pytest

from mmrednet.benchmark.candidates import Problem, operator_step
from mmrednet.benchmark.cases import Case
from mmrednet.benchmark.memory import peak_memory


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='needs Linux')
def test_peak_memory_shows_the_windows_of_unfold():
    case, small = Case(64, (56, 56), groups=4), Case(32, (9, 12), stride=(2, 2), groups=2)
    windows = 49 * 64 * 56 * 56 * 4
    reference, lean = (
        peak_memory(*(partial(operator_step, backend, Problem(c)) for c in (case, small)))
        for backend in ('reference', 'torch')
    )
    assert windows < reference < 4 * windows
    assert lean < windows
