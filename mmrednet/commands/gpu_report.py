"""A report on a GPU: whether the operator is right there, how fast it is, and how fast RedNet is. A user may send it.

It needs torch and CuPy; for the networks also mmpretrain. Each part runs in a process of its own, since a fault in a
kernel takes a process's GPU away from it, and is ended when its time is over: what it had found until then counts.
"""

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import __version__
from ..files import replacing
from . import CommandError
from .common import to_path

SECONDS = {False: 450, True: 150}  # in all: quick or not
DTYPES = ('float32', 'bfloat16', 'float16', 'float64')
SANITIZERS = ('memcheck', 'racecheck')  # compute-sanitizer's tools
CHECKS = (*DTYPES, 'behaviour', *SANITIZERS)
# What runs, in this order: the parts that run side by side, and their share of the seconds that are left by then.
PLAN: Sequence[tuple[tuple[str, ...], float]] = (
    (CHECKS, 0.4),
    (('operator',), 0.4),
    (('networks',), 0.5),
    (('compiled',), 1.0),
)
NOT_QUICK = (*SANITIZERS, 'compiled')
CANDIDATES = ('naive', 'depthwise', 'reference', 'apart', 'fused')
TITLES = {'floor': 'copy', 'reference': 'unfold'}
NETWORKS = ('ResNet-50', 'RedNet-26', 'RedNet-38', 'RedNet-50')
ROUNDS = (7, 50)
OVER = 'its time was over'

Item = tuple[str, Callable[[], dict]]  # a name, and what finds something out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument('--out', type=to_path, required=True, metavar='F.md', help='where the report goes, and F.json')
    parser.add_argument('--quick', action='store_true', help='the most important parts, in less than 3 minutes')


def run(args: argparse.Namespace) -> int:
    """Makes the report; returns 1 where something is wrong."""
    import torch

    from ..ops.backends import find

    if not torch.cuda.is_available():
        raise CommandError('torch finds no GPU here, and this report is on one: python -m mmrednet info says more')
    device = torch.device('cuda', torch.cuda.current_device())
    try:
        find('cuda', device)
    except RuntimeError as error:
        raise CommandError(str(error)) from error
    if args.out.suffix != '.md' or not os.access(args.out.absolute().parent, os.W_OK):
        raise CommandError(f'--out must be a file F.md in a folder that you can write to, but is {args.out}')
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and the parts' processes end too
    faults = make_report(args.out, device, args.quick)
    print(args.out)
    return 1 if faults else 0


def make_report(out: Path, device: Any, quick: bool = False) -> list[str]:
    """Makes the report on a device.

    Args:
        out (Path): Where it goes; what it is made from goes beside it, as JSON.
        device (torch.device): A GPU.
        quick (bool): Whether to leave out what is less important. Defaults to False.

    Returns:
        list[str]: What is wrong.
    """
    about = describe(device)
    begin, seconds = time.monotonic(), SECONDS[quick]
    outcomes: list[dict] = []
    for names, share in PLAN:
        names = tuple(name for name in names if not (quick and name in NOT_QUICK))
        limit = share * (seconds - (time.monotonic() - begin))
        if names:
            print(f'mmrednet gpu-report: {", ".join(names)}, at most {limit:.0f} s', file=sys.stderr, flush=True)
            outcomes += run_parts(names, limit, str(device), quick)
            # Each time: should the rest be cut off, what there is by then is there.
            about['took'] = f'{time.monotonic() - begin:.0f} s, of at most {seconds}'
            data = json.dumps({'about': about, 'parts': outcomes}, indent=1) + '\n'
            for path, text in ((out.with_suffix('.json'), data), (out, format_report(about, outcomes))):
                with replacing(path) as part:
                    part.write_text(text)
    return wrong(outcomes)


def describe(device: Any) -> dict[str, str]:
    """Returns what a reader needs to repeat the report on ``device``."""
    import torch

    from ..benchmark.report import describe_machine

    about = {'command': shlex.join(['python', '-m', 'mmrednet', *sys.argv[1:]]), **describe_machine(device)}
    about['mmrednet'] = __version__
    root = Path(__file__).resolve().parents[2]
    if (root / '.git').exists():
        git = ['git', '-C', str(root), 'describe', '--always', '--dirty', '--abbrev=12']
        with suppress(OSError):
            about['mmrednet'] += f', commit {subprocess.run(git, capture_output=True, text=True).stdout.strip()}'
    if device.type == 'cuda':
        gpu = torch.cuda.get_device_properties(device)
        about['GPU'] = (
            f'compute capability {gpu.major}.{gpu.minor}, {gpu.multi_processor_count} multiprocessors, '
            f'{gpu.total_memory / 2**30:.0f} GiB'
        )
        about |= _driver(str(getattr(gpu, 'uuid', '')))
        about['CUDA'] = f'{torch.version.cuda} of torch, cuDNN {torch.backends.cudnn.version()}'
        with suppress(Exception):  # CuPy's errors are of several kinds
            from cupy.cuda import nvrtc

            about['CUDA'] += f', NVRTC {".".join(map(str, nvrtc.getVersion()))}'
        about['TF32'] = (
            f'convolutions {torch.backends.cudnn.allow_tf32}, matrix products {torch.backends.cuda.matmul.allow_tf32}'
        )
    about['system'] = platform.platform()
    return about


def _driver(uuid: str) -> dict[str, str]:
    """Returns what nvidia-smi says of a GPU, where there is one."""
    fields = (
        'driver_version clocks.sm clocks.max.sm clocks.mem clocks.max.mem power.limit temperature.gpu ecc.mode.current'
    )
    query = ['nvidia-smi', f'--query-gpu={",".join(fields.split())}', '--format=csv,noheader']
    if uuid:
        query.append(f'--id=GPU-{uuid.removeprefix("GPU-")}')
    if not shutil.which(query[0]):
        return {'driver': 'nvidia-smi is not there to ask'}
    answer = subprocess.run(query, capture_output=True, text=True)
    values = [value.strip() for value in answer.stdout.partition('\n')[0].split(',')]
    if answer.returncode or len(values) != len(fields.split()):
        return {'driver': f'nvidia-smi does not say: {_line(answer.stdout + answer.stderr)}'}
    found = dict(zip(fields.split(), values, strict=True))
    return {'driver': found.pop('driver_version'), 'clocks': ', '.join(f'{k} {v}' for k, v in found.items())}


# The parts. Each returns what it will find out, the most important first.


def correctness(dtype: str, device: Any, backend: str, quick: bool = False) -> list[Item]:
    """Returns a check of each problem and layout in a type, with the fused operator and second derivatives."""
    import torch

    from ..gpu_report.checks import LAYOUTS, PROBLEMS, QUICK, errors

    torch.backends.cudnn.allow_tf32 = False  # the convolution before the involution would round to 10 bits
    torch.manual_seed(0)
    return [
        (
            f'{name}; {layout}; {dtype}',
            partial(
                lambda *given: {'errors': errors(*given)}, batch, case, getattr(torch, dtype), device, layout, backend
            ),
        )
        for name, batch, case in (PROBLEMS[:QUICK] if quick else PROBLEMS)
        for layout in LAYOUTS
    ]


def sanitized(device: Any, backend: str, quick: bool = False) -> list[Item]:
    """Returns what runs under compute-sanitizer, where all is a hundred times slower: one problem of each kind."""
    items = {
        name: measure for dtype in ('float32', 'bfloat16') for name, measure in correctness(dtype, device, backend)
    }
    chosen = ('a small map', 'odd sizes', 'a map of one pixel', 'wide rows', 'dilation')
    return [(name, measure) for start in chosen for name, measure in items.items() if name.startswith(start)]


def behaves(device: Any, backend: str, quick: bool = False) -> list[Item]:
    """Returns checks of streams, graphs and repeated runs."""
    import torch

    from ..gpu_report.checks import behaviour

    torch.backends.cudnn.deterministic = True  # the bits of the convolution before the involution are compared too
    torch.manual_seed(0)
    return [(name, partial(lambda check: {'wrong': check()}, check)) for name, check in behaviour(device, backend)]


def operator(
    device: Any, backend: str, quick: bool = False, cases: Iterable[tuple] | None = None, compiled: bool = False
) -> list[Item]:
    """Returns timings of the operator beside other candidates, or beside both forms of the formula compiled.

    Args:
        device (torch.device): Where it runs.
        backend (str): What is timed.
        quick (bool): Whether only the most usual types and layouts are. Defaults to False.
        cases (Iterable, optional): Pairs of a case and its batch size. Defaults to None: RedNet-50's four stages at
            batch 64, and FPN's finest level.
        compiled (bool): Which. Defaults to False.
    """
    import torch

    from ..benchmark.candidates import fpn_case, stage_cases
    from ..benchmark.measure import FORMS

    torch.backends.cudnn.benchmark = True
    cases = list(cases or [*((case, 64) for case in stage_cases()), (fpn_case((800, 1280)), 1)])
    settings = [(torch.float32, False), (torch.bfloat16, True)]
    if not quick:
        settings += [(torch.bfloat16, False), (torch.float32, True), (torch.float16, True)]
    if compiled:
        settings = settings[:1] + settings[2:3]
    candidates = (backend, 'floor', *(FORMS if compiled else CANDIDATES))
    return [
        (
            f'{case}; batch {batch}; {_word(dtype)}; {"channels-last" if last else "contiguous"}; {phase}',
            partial(_time_operator, candidates, case, batch, dtype, device, last, phase),
        )
        for dtype, last in settings
        for phase in ('forward', 'backward')
        for case, batch in cases
    ]


def _time_operator(candidates: Sequence[str], case, batch: int, dtype, device, last: bool, phase: str) -> dict:
    from ..benchmark.measure import time_candidates

    results, missing = time_candidates(candidates, case, batch, dtype, device, last, phase, 0.5, ROUNDS)
    return {'results': [asdict(result) for result in results], 'missing': missing}


def networks(
    device: Any, backend: str, quick: bool = False, batch: int = 64, size: tuple[int, int] = (224, 224)
) -> list[Item]:
    """Returns timings of RedNets beside ResNet-50: eager, compiled and as a CUDA graph; a training step, and memory."""
    if find_spec('mmpretrain') is None or find_spec('mmcv') is None:
        raise ImportError(
            "the networks need mmpretrain, mmcv and mmengine: pip install '.[openmmlab]' in mmrednet's folder"
        )
    import torch

    torch.backends.cudnn.benchmark = True
    ways = [('inference', 'eager'), ('inference', 'CUDA graph'), ('training', 'eager')]
    if not quick:
        ways += [('inference', 'compiled'), ('training', 'memory'), ('training', 'compiled')]
    if device.type == 'cpu':
        ways = [way for way in ways if way[1] == 'eager']
    settings = [(torch.float32, False), (torch.bfloat16, True)]
    return [
        (
            f'{phase}; {way}; batch {batch}; {_word(dtype)}; {"channels-last" if last else "contiguous"}',
            partial(_time_networks, way, batch, dtype, device, last, phase, size),
        )
        for phase, way in ways
        for dtype, last in settings
    ]


def _time_networks(way: str, batch: int, dtype, device, last: bool, phase: str, size: tuple[int, int]) -> dict:
    import torch

    from ..benchmark.candidates import network_step
    from ..benchmark.measure import labels_of
    from ..benchmark.timing import Result, captured, peak_memory, time_in_turns

    setting = (dtype, device, last, phase)
    labels = {'way': way, **labels_of(batch, dtype, last, phase)}
    # Compiling takes a minute or so for each.
    names = (NETWORKS[0], NETWORKS[-1]) if way == 'compiled' else NETWORKS
    if way == 'memory':
        results = []
        for name in names:
            build, warm_up = (partial(network_step, name, n, *setting, s) for n, s in ((batch, size), (1, (64, 64))))
            results.append(Result(labels, name, 'MiB', (peak_memory(build, warm_up, device) / 2**20,)))
        return {'results': [asdict(result) for result in results]}
    if way == 'compiled':
        torch.compiler.reset()
    steps = {name: network_step(name, batch, *setting, size, compiled=way == 'compiled') for name in names}
    if way == 'CUDA graph':
        steps = {name: captured(step, device) for name, step in steps.items()}
    times = time_in_turns(steps, device, 3.0, ROUNDS)
    return {
        'results': [asdict(Result(labels, n, 'ms', tuple(1e3 * s for s in samples))) for n, samples in times.items()]
    }


PARTS: dict[str, Callable[..., list[Item]]] = {
    **{dtype: partial(correctness, dtype) for dtype in DTYPES},
    'behaviour': behaves,
    'operator': operator,
    'networks': networks,
    'compiled': partial(operator, compiled=True),
    **dict.fromkeys(SANITIZERS, sanitized),
}


# Their processes.


def run_parts(names: Sequence[str], seconds: float, device: str, quick: bool = False) -> list[dict]:
    """Runs parts side by side and returns, for each, what it found and what it left out.

    Args:
        names (Sequence[str]): Of ``PARTS``.
        seconds (float): After which they are ended.
        device (str): Where they run.
        quick (bool): Whether they leave things out. Defaults to False.

    Returns:
        list[dict]: Of each its 'part'; its 'items', by name, with what each has found; 'left_out', the names of the
        others; and 'end', how it ended if not well.
    """
    from ..ops.backends.cuda import WRITTEN

    deadline = time.monotonic() + seconds
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for name in names:
            prefix = []
            if name in SANITIZERS:
                tool = _sanitizer()
                if tool is None:
                    outcomes.append(
                        {'part': name, 'items': {}, 'left_out': [], 'end': 'no compute-sanitizer is installed'}
                    )
                    continue
                prefix = [tool, '--tool', name, '--log-file', f'{folder}/{name}.log']
                for function in WRITTEN:  # ours alone: with torch's own kernels it would take minutes
                    prefix += ['--kernel-name', f'kne={function}']
                if name == 'memcheck':  # what torch asks the driver, and is told no, is no error
                    prefix += ['--report-api-errors', 'no']
            code = f'from {__name__} import _part; _part({name!r}, {device!r}, {quick})'
            environment = dict(os.environ)
            if prefix:  # in torch's blocks of memory, reading beyond one's own is no error
                environment['PYTORCH_NO_CUDA_MEMORY_CACHING'] = '1'
            with open(f'{folder}/{name}.out', 'w') as out, open(f'{folder}/{name}.err', 'w') as err:
                command = [*prefix, sys.executable, '-c', code]
                process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, preexec_fn=os.setpgrp)
            running.append((name, process))
        ends = {}
        try:
            for name, process in running:
                try:
                    status = process.wait(max(0.0, deadline - time.monotonic()))
                    ends[name] = '' if status == 0 else _signal(-status) if status < 0 else f'exit status {status}'
                except subprocess.TimeoutExpired:
                    ends[name] = OVER
        finally:
            for _, process in running:
                with suppress(ProcessLookupError):  # with the compilers that it started
                    os.killpg(process.pid, signal.SIGKILL)
                with suppress(subprocess.TimeoutExpired):  # one that waits for the driver cannot be ended
                    process.wait(10)
        outcomes += [_outcome(name, Path(folder, name), end) for name, end in ends.items()]
    return outcomes


def _signal(number: int) -> str:
    return signal.Signals(number).name


def _outcome(name: str, path: Path, end: str) -> dict:
    lines = []
    for line in path.with_suffix('.out').read_text().splitlines():
        with suppress(json.JSONDecodeError):  # the last one may be cut off
            lines.append(json.loads(line))
    planned = lines[0] if lines else []
    items = dict(zip(planned, lines[1:], strict=False))
    if end and end != OVER:
        said = [line.strip() for line in path.with_suffix('.err').read_text().splitlines() if line.strip()]
        # torch says more behind its error.
        end += ''.join(f': {line}' for line in ([line for line in said if 'Error: ' in line] or said)[-1:])
    outcome = {'part': name, 'items': items, 'left_out': planned[len(items) :], 'end': end}
    log = path.with_suffix('.log')
    if log.exists():
        text = [line.removeprefix('=========').strip() for line in log.read_text().splitlines()]
        if refusal := next((line for line in text if 'not supported' in line), None):
            return {'part': name, 'items': {}, 'left_out': planned, 'end': f'compute-sanitizer: {refusal}'}
        outcome['sanitizer'] = [line for line in text if line][:30]
        outcome['summary'] = next((line for line in reversed(text) if 'SUMMARY' in line), 'no summary: it was ended')
    return outcome


def _sanitizer() -> str | None:
    homes = *filter(None, map(os.environ.get, ('CUDA_HOME', 'CUDA_PATH'))), '/usr/local/cuda'
    places = os.environ.get('PATH', ''), *(f'{home}/bin' for home in homes)
    return shutil.which('compute-sanitizer', path=os.pathsep.join(places))


def _part(name: str, device: str, quick: bool) -> None:
    """Writes, as lines of JSON, the names of a part's items, and then what each finds."""
    import torch

    from ..ops.backends import TABLE

    lines = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what packages print is no finding
    place = torch.device(device)
    if place.type == 'cuda':
        torch.cuda.set_device(place)
    backend = next(backend for backend, row in TABLE.items() if place.type in row.devices)
    try:
        items = PARTS[name](place, backend, quick)
    except ImportError as error:
        raise SystemExit(str(error)) from error
    print(json.dumps([item for item, _ in items]), file=lines, flush=True)
    for _, measure in items:
        try:
            found = measure()
        except (MemoryError, torch.OutOfMemoryError) as error:
            found = {'skipped': f'not enough memory: {_line(error)}'}
        except Exception as error:
            found = {'failed': f'{type(error).__name__}: {_line(error)}'}
        print(json.dumps(found), file=lines, flush=True)
        if place.type == 'cuda' and ('failed' in found or 'skipped' in found):
            torch.cuda.synchronize()  # raises where a fault has taken the GPU from this process
            torch.cuda.empty_cache()


def _line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), '')[:300]


def _word(dtype: Any) -> str:
    return str(dtype).removeprefix('torch.')


# The report.


def wrong(outcomes: Sequence[Mapping]) -> list[str]:
    """Returns what is wrong in the parts that check: errors beyond what is allowed, failures, and sudden ends."""
    found = []
    for outcome in outcomes:
        checks = outcome['part'] in CHECKS
        for item, result in outcome['items'].items():
            if checks and 'failed' in result:
                found.append(f'{item}: {result["failed"]}')
            for name, error in result.get('errors', {}).items():
                if not error <= 1:
                    found.append(f'{item}: {name} has {error:.3g} times the error that is allowed')
            if result.get('wrong'):
                found.append(f'{item}: {result["wrong"]}')
        # How a sanitizer ends is its own affair; what it has found, it says.
        if checks and outcome['part'] not in SANITIZERS and re.match(r'SIG|exit status', outcome['end']):
            found.append(f'{outcome["part"]}: ended by {outcome["end"]}')
        # Without a summary, where its time was over, what it has said counts.
        said = [outcome.get('summary', ''), *outcome.get('sanitizer', ())]
        if fault := next((line for line in said if re.search(r'SUMMARY: [1-9]|^Invalid |Race reported', line)), None):
            found.append(f'{outcome["part"]}: {fault}')
    return found


def format_report(about: Mapping[str, str], outcomes: Sequence[Mapping]) -> str:
    """Returns the report in Markdown.

    Args:
        about (Mapping[str, str]): What :func:`describe` returns.
        outcomes (Sequence[Mapping]): What :func:`run_parts` returns, of all parts.
    """
    parts = {outcome['part']: outcome for outcome in outcomes}
    faults = wrong(outcomes)
    dtypes = [name for name in DTYPES if name in parts]
    text = ['# mmrednet on a GPU', '\n'.join(f'- {name}: {value}' for name, value in about.items())]
    checks = [result for name in CHECKS if name in parts for result in parts[name]['items'].values()]
    ran = sum('skipped' not in result for result in checks)
    rest = len(checks) - ran + sum(len(parts[name]['left_out']) for name in CHECKS if name in parts)
    verdict = f'{len(faults)} faults in {ran} checks' if faults else f'All {ran} checks that ran are right'
    text.append('## Is it right?')
    text.append(
        f'**{verdict if ran or faults else "Nothing was checked"}.**' + (f' {rest} did not run.' if rest else '')
    )
    text += ['\n'.join(f'- {fault}' for fault in faults)] if faults else []
    if dtypes:
        text.append(
            'The largest error of output, gradients, second derivatives and the fused operator in four layouts, '
            'against plain PyTorch in float64, in parts of what is allowed (1 is the most):'
        )
        text.append(_correctness_table({name: parts[name]['items'] for name in dtypes}))
    if 'behaviour' in parts:
        text.append(_table(('check', 'result'), [(n, _verdict(r)) for n, r in parts['behaviour']['items'].items()]))
    for name in SANITIZERS:
        if name in parts:
            outcome = parts[name]
            said = outcome.get('summary', outcome['end'])
            text.append(f'compute-sanitizer, {name}, on {len(outcome["items"])} checks: {said}.')
    for name, title in (('operator', '## How fast is the operator?'), ('compiled', '## Beside `torch.compile`')):
        if name in parts and (table := _operator_tables(parts[name]['items'].values())):
            text += [
                title,
                "Milliseconds; GB/s and the percentage of a copy of the same bytes are the native kernel's.",
                table,
            ]
    if 'networks' in parts:
        text += ['## How fast are networks?', _networks_tables(parts['networks'])]
    left = [f'- {o["part"]}: {", ".join(o["left_out"]) or "nothing"} ({o["end"]})' for o in outcomes if o['end']]
    left += [
        f'- {item}: {reason}'
        for outcome in outcomes
        for item, result in outcome['items'].items()
        for reason in (
            # What fails in a check is wrong, and stands above.
            *(
                result[k]
                for k in ('skipped', 'failed')
                if k in result and (k, outcome['part'] in CHECKS) != ('failed', True)
            ),
            *(f'{name}: {error}' for name, error in result.get('missing', {}).items()),
        )
    ]
    text += ['## What was left out', '\n'.join(left) or 'Nothing.']
    return '\n\n'.join(text) + '\n'


def _table(header: Sequence[str], rows: Sequence[Sequence], figures: Sequence[int] = ()) -> str:
    from ..benchmark.report import markdown_table

    return markdown_table(header, rows, figures)


def _verdict(result: Mapping) -> str:
    return result.get('failed') or result.get('skipped') or result.get('wrong') or 'right'


def _correctness_table(items: Mapping[str, Mapping[str, Mapping]]) -> str:
    cells: dict[str, dict[str, list[float]]] = {}
    for dtype, found in items.items():
        for item, result in found.items():
            if 'skipped' in result:
                continue
            worst = max(result['errors'].values()) if 'errors' in result else float('inf')
            cells.setdefault(item.partition(';')[0], {}).setdefault(dtype, []).append(worst)
    rows = [
        (name, *(f'{max(row[dtype]):.2f}' if dtype in row else '' for dtype in items)) for name, row in cells.items()
    ]
    return _table(('problem', *items), rows, range(1, 1 + len(items)))


def _operator_tables(found: Iterable[Mapping]) -> str:
    from ..benchmark.report import rounded
    from ..benchmark.timing import Result, by_case

    tables: dict[str, list[dict[str, str]]] = {}
    for case in by_case([Result(**r) for one in found for r in one.get('results', ())]):
        labels, times = case[0].labels, {r.candidate: r for r in case}
        native = next(r for r in case if r.candidate in ('cuda', 'cpu'))
        row = {'shape': str(labels['shape']), 'batch': str(labels['batch']), 'pass': str(labels['pass'])}
        row |= {TITLES.get(name, name): rounded(r.median) for name, r in times.items()}
        row['GB/s'] = rounded((native.bytes or 0) / native.median / 1e6)
        if floor := times.get('floor'):
            row['% of a copy'] = f'{100 * floor.median / native.median:.0f}'
        tables.setdefault(f'{labels["dtype"]}, {labels["layout"]}', []).append(row)
    return '\n\n'.join(f'**{title}**\n\n{_uneven(rows, 3)}' for title, rows in tables.items())


def _networks_tables(outcome: Mapping) -> str:
    from ..benchmark.report import rounded
    from ..benchmark.timing import Result, by_case

    rows = []
    for case in by_case([Result(**r) for one in outcome['items'].values() for r in one.get('results', ())]):
        row = {name: str(value) for name, value in case[0].labels.items()} | {'unit': case[0].unit}
        medians = {r.candidate: r.median for r in case}
        row |= {name: rounded(value) for name, value in medians.items()}
        row['RedNet-50 / ResNet-50'] = rounded(medians['RedNet-50'] / medians['ResNet-50'])
        rows.append(row)
    return _uneven(rows, 6) if rows else f'They were not measured: {outcome["end"] or "all failed"}.'


def _uneven(rows: Sequence[Mapping[str, str]], words: int) -> str:
    """Returns a table of rows that lack columns; the first ``words`` columns hold words."""
    header = list(dict.fromkeys(name for row in rows for name in row))
    return _table(header, [[row.get(name, '') for name in header] for row in rows], range(words, len(header)))
