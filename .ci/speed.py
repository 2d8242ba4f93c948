"""No step back: compares the native CPU code's times with committed ones, as ratios to references on the same machine.

    python .ci/speed.py           # compares; the exit status is 1 where a speed has fallen by half
    python .ci/speed.py --write   # writes this machine's ratios to speed.json, for its kind of CPU

References are a copy of the bytes and the depthwise convolution, in turns with the native code and on one thread. A
ratio is one of minima, which other work on the machine hardly changes, and what is written the median of three. What
counts as fallen has done so against both references, three times.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median

import torch

from mmrednet.benchmark.candidates import Case, operator_step, stage_cases
from mmrednet.benchmark.timing import time_in_turns

FIGURES = Path(__file__).with_suffix('.json')
REFERENCES = ('floor', 'depthwise')
STAGES = stage_cases()
MEASURED = [
    *((case, phase, 'cpu') for case in STAGES[::2] for phase in ('forward', 'backward')),
    *((Case(128, (56, 56), stride=(2, 2), groups=8), phase, 'cpu') for phase in ('forward', 'backward')),
    (STAGES[0], 'forward', 'fused'),
]


def measure() -> dict[str, dict[str, float]]:
    """Returns, of each case, how many times as long as a reference's its shortest call takes."""
    ratios = {}
    for case, phase, candidate in MEASURED:
        steps = {name: operator_step(name, case, phase=phase) for name in (candidate, *REFERENCES)}
        times = {name: min(samples) for name, samples in time_in_turns(steps, budget=1, rounds=(15, 100)).items()}
        ratios[f'{case}: {candidate}, {phase}'] = {
            name: round(times[candidate] / times[name], 2) for name in REFERENCES
        }
    return ratios


def main() -> int:
    """Compares or writes."""
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
    committed = figures.get(cpu)
    if committed is None or committed.keys() != today.keys():
        print(f'{FIGURES.name} has no figures of these cases on {cpu}: python .ci/speed.py --write adds them')
        return 0

    def fallen() -> list[str]:
        return [name for name, was in committed.items() if all(today[name][r] > 2 * was[r] for r in REFERENCES)]

    for _ in range(2):
        if not fallen():
            break
        again = measure()
        today = {name: {r: min(today[name][r], again[name][r]) for r in REFERENCES} for name in today}
    for name, was in committed.items():
        now = ', '.join(f'{today[name][r]} (was {was[r]}) of {r}' for r in REFERENCES)
        print(f'{name}: {now}{": HALF AS FAST" if name in fallen() else ""}')
    return 1 if fallen() else 0


if __name__ == '__main__':
    sys.exit(main())
