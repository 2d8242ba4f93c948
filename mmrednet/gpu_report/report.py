"""The report: runs its parts within a time limit, lists the faults and writes the text."""

import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from .. import __version__
from ..benchmark.report import result_tables
from ..benchmark.timing import Result
from ..environment import commit, describe_gpu, describe_machine
from ..files import replacing
from ..formatting import markdown_list, markdown_table
from ..workers import TIME_IS_UP, Job, run_jobs
from .parts import CHECKS, DTYPES, items_of

SECONDS, SECONDS_QUICK = 450, 150  # for the whole report
# The parts in their order. A row has the parts that run side by side, and their share of the time that is left.
PLAN: Sequence[tuple[tuple[str, ...], float]] = (
    (CHECKS, 0.4),
    (('operator',), 0.4),
    (('networks',), 0.5),
    (('compiled',), 1.0),
)
UNITS = 'Medians of milliseconds and, in brackets, their interquartile range.'
MEASURED = {
    'operator': 'How fast is the operator?',
    'compiled': 'Beside `torch.compile`',
    'networks': 'How fast are networks?',
}


def make_report(out: Path, device: torch.device, quick: bool = False, about: Mapping[str, str] = {}) -> list[str]:
    """Makes the report on a GPU, and returns what is wrong.

    ``out`` is the Markdown file. All measurements are written beside it as JSON. The report begins with the facts in
    ``about``.
    """
    facts = {**about, **describe(device)}
    begin, seconds = time.monotonic(), SECONDS_QUICK if quick else SECONDS
    outcomes: list[dict] = []
    for names, share in PLAN:
        limit = share * (seconds - (time.monotonic() - begin))
        if not (quick and 'compiled' in names):
            print(f'mmrednet gpu-report: {", ".join(names)}, at most {limit:.0f} s', file=sys.stderr, flush=True)
            outcomes += run_parts(names, limit, str(device), quick)
            # After each part, so that an interrupted report has the parts that were finished.
            facts['took'] = f'{time.monotonic() - begin:.0f} s, of at most {seconds}'
            data = json.dumps({'about': facts, 'parts': outcomes}, indent=1) + '\n'
            for path, text in ((out.with_suffix('.json'), data), (out, format_report(facts, outcomes))):
                with replacing(path) as part:
                    part.write_text(text)
    return find_faults(outcomes)


def run_parts(names: Sequence[str], seconds: float, device: str, quick: bool = False) -> list[dict]:
    """Runs some of ``PARTS`` side by side for at most some seconds, and returns the outcome of each.

    Each part has its own process, since a fault in a kernel makes the GPU unusable for a process. 'part' is the part's
    name, 'items' has what each item has found, 'left_out' has the names of the other items, and 'end' is why the part
    ended early, '' otherwise.
    """
    outcomes = []
    jobs = [Job(items_of, (name, device, quick)) for name in names]
    for name, (planned, found, end, error) in zip(names, run_jobs(jobs, seconds), strict=True):
        if end and end != TIME_IS_UP and error:
            end += f': {error}'
        items = dict(zip(planned, found, strict=False))
        outcomes.append({'part': name, 'items': items, 'left_out': planned[len(items) :], 'end': end})
    return outcomes


def describe(device: torch.device) -> dict[str, str]:
    """Returns the facts that a reader needs to repeat the report on a device."""
    version = __version__ + (f', commit {commit()}' if commit() else '')
    gpu = describe_gpu(device) if device.type == 'cuda' else {}
    return {**describe_machine(device), 'mmrednet': version, **gpu, 'system': platform.platform()}


def find_faults(outcomes: Sequence[Mapping]) -> list[str]:
    """Returns what is wrong in the parts that check: errors beyond the tolerance, failures and crashes."""
    faults = []
    for outcome in outcomes:
        part = outcome['part']
        if part not in CHECKS:
            continue
        for item, result in outcome['items'].items():
            for name, error in result.get('errors', {}).items():
                if not error <= 1:  # NaN, too
                    faults.append(f'{item}: {name} has {error:.3g} times the error that is allowed')
            faults += [f'{item}: {result[key]}' for key in ('failed', 'wrong') if result.get(key)]
        if outcome['end'] not in ('', TIME_IS_UP):
            faults.append(f'{part}: ended by {outcome["end"]}')
    return faults


def format_report(about: Mapping[str, str], outcomes: Sequence[Mapping]) -> str:
    """Returns the report in Markdown, from what :func:`describe` and :func:`run_parts` return."""
    parts = {outcome['part']: outcome for outcome in outcomes}
    text = ['# mmrednet on a GPU', markdown_list(about), '## Is it right?', *_verdicts(parts)]
    for name, title in MEASURED.items():
        if name in parts:
            found = parts[name]['items'].values()
            results = [Result(**result) for one in found for result in one.get('results', ())]
            missing = f'Nothing was measured: {parts[name]["end"] or "all failed"}.'
            text += [f'## {title}', f'{UNITS}\n\n{result_tables(results)}' if results else missing]
    left_out = '\n'.join(f'- {line}' for line in _left_out(outcomes))
    return '\n\n'.join([*text, '## What was left out', left_out or 'Nothing.']) + '\n'


def _verdicts(parts: Mapping[str, Mapping]) -> Iterator[str]:
    """Yields the paragraphs on whether the operator is right."""
    faults = find_faults([*parts.values()])
    checking = {name: parts[name] for name in CHECKS if name in parts}
    checks = [result for outcome in checking.values() for result in outcome['items'].values()]
    ran = sum('skipped' not in result for result in checks)
    rest = len(checks) - ran + sum(len(outcome['left_out']) for outcome in checking.values())
    verdict = f'{len(faults)} faults in {ran} checks' if faults else f'All {ran} checks that ran are right'
    yield f'**{verdict if ran or faults else "Nothing was checked"}.**' + (f' {rest} did not run.' if rest else '')
    if faults:
        yield '\n'.join(f'- {fault}' for fault in faults)
    if dtypes := {name: parts[name]['items'] for name in DTYPES if name in parts}:
        yield (
            'The largest error of output, gradients, second derivatives and the fused operator in four layouts, '
            'against plain PyTorch in float64, divided by the error that is allowed (1 is the largest allowed):'
        )
        yield _correctness_table(dtypes)
    if 'behaviour' in parts:
        results = parts['behaviour']['items'].items()
        keys = ('failed', 'skipped', 'wrong')
        rows = [(name, next((found[k] for k in keys if found.get(k)), 'right')) for name, found in results]
        yield markdown_table(('check', 'result'), rows)


def _correctness_table(items: Mapping[str, Mapping[str, Mapping]]) -> str:
    cells: dict[str, dict[str, float]] = {}
    for dtype, found in items.items():
        for item, result in found.items():
            if 'skipped' not in result:
                worst = max(result['errors'].values()) if 'errors' in result else float('inf')
                row = cells.setdefault(item.partition(';')[0], {})
                row[dtype] = max(worst, row.get(dtype, 0.0))
    rows = [(name, *(f'{row[dtype]:.2f}' if dtype in row else '' for dtype in items)) for name, row in cells.items()]
    return markdown_table(('problem', *items), rows, range(1, 1 + len(items)))


def _left_out(outcomes: Sequence[Mapping]) -> Iterator[str]:
    for outcome in outcomes:
        if outcome['end']:
            yield f'{outcome["part"]}: {", ".join(outcome["left_out"]) or "nothing"} ({outcome["end"]})'
    for outcome in outcomes:
        for item, result in outcome['items'].items():
            if 'skipped' in result:
                yield f'{item}: {result["skipped"]}'
            if 'failed' in result and outcome['part'] not in CHECKS:  # in a check it is a fault
                yield f'{item}: {result["failed"]}'
            for name, error in result.get('missing', {}).items():
                yield f'{item}: {name}: {error}'
