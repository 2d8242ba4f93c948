import json
import subprocess
import sys
from functools import partial

import pytest
from helpers import ROOT

from mmrednet.analysis import benchmark
from mmrednet.analysis.benchmark import benchmark_network, benchmark_operator
from mmrednet.analysis.candidates import PHASES, Case, network_step, rednet_cases, working_backends

SMALL = Case(32, (9, 12), stride=(2, 2), groups=2)


@pytest.mark.parametrize('channels_last', (False, True))
def test_every_candidate_of_the_operator_runs(channels_last):
    candidates = ['floor', 'depthwise', *working_backends('cpu')]
    assert {'reference', 'torch'} <= set(candidates)
    results = list(benchmark_operator([SMALL], (1, 2), channels_last=channels_last, budget=0))
    forward = [*candidates, 'apart', 'fused'] * 2
    assert [r.candidate for r in results] == forward + candidates * 2
    assert [r.labels['pass'] for r in results] == ['forward'] * len(forward) + ['backward'] * 2 * len(candidates)
    # Input 32x9x12, kernels 2x7x7 and output 32 at 5x6 pixels, of 4 bytes; backward the first two twice.
    read, written = 32 * 9 * 12 + 2 * 49 * 30, 32 * 30
    assert {(r.labels['batch'], r.labels['pass']): r.bytes for r in results} == {
        (batch, phase): 4 * batch * (passes * read + written)
        for batch in (1, 2)
        for phase, passes in (('forward', 1), ('backward', 2))
    }
    assert all(r.unit == 'ms' and len(r.samples) == 7 and min(r.samples) > 0 for r in results)


def test_networks(monkeypatch):
    monkeypatch.setattr(benchmark, 'network_step', partial(network_step, size=(64, 64)))
    models = ('ResNet-26', 'RedNet-26', 'RedNet-26/torch')
    results = list(benchmark_network(models, budget=0))
    assert [(r.labels['pass'], r.candidate) for r in results] == [(p, m) for p in PHASES for m in models]
    assert all(len(r.samples) == 7 for r in results)


def test_command_line():
    command = [sys.executable, 'tools/benchmark.py', 'operator', '--device', 'cpu', '--quick', '--format', 'json']
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    assert report['command'] == 'python tools/benchmark.py operator --device cpu --quick --format json'
    shapes = [str(case) for case in rednet_cases()[:2]]
    assert list(dict.fromkeys(record['shape'] for record in report['results'])) == shapes
