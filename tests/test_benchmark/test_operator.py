import pytest
from helpers import TORCH_ALONE, run_python

from mmrednet.benchmark.candidates import Problem, working_backends
from mmrednet.benchmark.cases import Case
from mmrednet.benchmark.operator import benchmark_operator

SMALL = Case(32, (9, 12), stride=(2, 2), groups=2)


@pytest.mark.parametrize('channels_last', (False, True))
def test_every_candidate_of_the_operator_runs(channels_last):
    candidates = ['floor', 'depthwise', *working_backends('cpu')]
    assert {'reference', 'torch'} <= set(candidates)
    problems = [
        Problem(SMALL, batch=batch, channels_last=channels_last, phase=phase)
        for phase in ('forward', 'backward')
        for batch in (1, 2)
    ]
    results = list(benchmark_operator(problems, budget=0))
    forward = [*candidates, 'unfused', 'fused'] * 2
    assert [r.candidate for r in results] == forward + candidates * 2
    assert [r.labels['phase'] for r in results] == ['forward'] * len(forward) + ['backward'] * 2 * len(candidates)
    # Input 32x9x12, kernels 2x7x7 and output 32 at 5x6 pixels, of 4 bytes each. Backward moves the first two twice.
    read, written = 32 * 9 * 12 + 2 * 49 * 30, 32 * 30
    assert {(r.labels['batch'], r.labels['phase']): r.bytes for r in results} == {
        (batch, phase): 4 * batch * (passes * read + written)
        for batch in (1, 2)
        for phase, passes in (('forward', 1), ('backward', 2))
    }
    assert all(r.unit == 'ms' and len(r.samples) == 7 and min(r.samples) > 0 for r in results)


def test_the_operator_is_measured_with_torch_alone():
    run_python(
        'from mmrednet.benchmark.operator import benchmark_operator\n'
        'from mmrednet.benchmark.candidates import Problem\n'
        'from mmrednet.benchmark.cases import Case\n'
        'from mmrednet.benchmark.report import format_results\n'
        'from mmrednet.environment import describe_machine\n'
        'results = list(benchmark_operator([Problem(Case(8, (5, 5)))], budget=0))\n'
        "assert 'floor' in format_results(results, 'markdown', describe_machine())\n",
        TORCH_ALONE,
    )
