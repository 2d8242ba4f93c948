"""CI's speed gate: compares the native CPU code's times with committed ones, as ratios to references on this machine.

    python .ci/speed.py           # compares; the exit status is 1 if a case fails
    python .ci/speed.py --write   # writes this machine's ratios to speed.json, for its kind of CPU

The references are a copy of the same bytes and the depthwise convolution. They are timed in turns with the native code,
on one thread. A ratio compares the shortest times, which other work on the machine hardly changes. `--write` takes the
median of three runs. A case fails if, in the best of three runs, both ratios are more than twice the committed ones. On
a kind of CPU without committed ratios, the highest ones of all kinds are the limits.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median

import torch

from mmrednet.benchmark.candidates import Problem, operator_step
from mmrednet.benchmark.cases import Case, stage_cases
from mmrednet.benchmark.timing import time_in_turns

FIGURES = Path(__file__).with_suffix('.json')
REFERENCES = ('floor', 'depthwise')
STAGES = stage_cases()
MEASURED = [
    *(
        ('cpu', Problem(case, phase=phase))
        for case in (*STAGES[::2], Case(128, (56, 56), stride=(2, 2), groups=8))
        for phase in ('forward', 'backward')
    ),
    ('fused', Problem(STAGES[0])),
]


def measure() -> dict[str, dict[str, float]]:
    """Returns for each case the ratio of its shortest time to that of each reference."""
    ratios = {}
    for candidate, problem in MEASURED:
        steps = {name: operator_step(name, problem) for name in (candidate, *REFERENCES)}
        samples = time_in_turns(steps, 'cpu', budget=1, rounds=(15, 100))
        shortest = {name: min(times) for name, times in samples.items()}
        own = shortest.pop(candidate)
        ratios[f'{problem.case}: {candidate}, {problem.phase}'] = {
            name: round(own / time, 2) for name, time in shortest.items()
        }
    return ratios


def slowest(figures: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Returns the highest ratio of each case and reference among all kinds of CPU."""
    kinds = [*figures.values()]
    return {name: {r: max(kind[name][r] for kind in kinds) for r in REFERENCES} for name in kinds[0]}


def main() -> int:
    """Compares the ratios or writes them, and returns the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--write', action='store_true')
    args = parser.parse_args()
    torch.set_num_threads(1)
    cpu, figures = torch.backends.cpu.get_cpu_capability(), json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if args.write:
        runs = [measure() for _ in range(3)]
        today = {name: {r: median(run[name][r] for run in runs) for r in REFERENCES} for name in runs[0]}
        FIGURES.write_text(json.dumps(figures | {cpu: today}, indent=1) + '\n')
        return 0
    today = measure()
    committed = figures.get(cpu) or slowest(figures)
    if cpu not in figures:
        print(f'{FIGURES.name} has no ratios for {cpu}, so the highest ones of all kinds of CPU are the limits')
    if committed.keys() != today.keys():
        print(f'{FIGURES.name} has other cases than this script: run it with --write')
        return 1

    def fallen() -> list[str]:
        return [name for name, was in committed.items() if all(today[name][r] > 2 * was[r] for r in REFERENCES)]

    for _ in range(2):
        if not fallen():
            break
        again = measure()
        today = {name: {r: min(today[name][r], again[name][r]) for r in REFERENCES} for name in today}
    for name, was in committed.items():
        now = ', '.join(f'{today[name][r]} times {r} (was {was[r]})' for r in REFERENCES)
        print(f'{name}: {now}{": LESS THAN HALF AS FAST" if name in fallen() else ""}')
    return 1 if fallen() else 0


if __name__ == '__main__':
    sys.exit(main())
