"""The time of networks on the CPU in PyTorch, ONNX Runtime and OpenVINO. It needs mmpretrain and the runtimes."""

from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from .networks import classifier, network_step
from .timing import Labels, Result, Setting, Step, time_in_turns

MODELS = ('ResNet-50', 'RedNet-50')
# The name of each runtime, and the format of `mmrednet.export` that it reads. PyTorch reads none.
RUNTIMES = {
    'PyTorch': None,
    'PyTorch, channels-last': None,
    'torch.compile': None,
    'ONNX Runtime': 'onnx',
    'ONNX Runtime, our operator': 'onnxruntime',
    'OpenVINO': 'openvino',
}


def runtime_step(name: str, runtime: str, batch: int = 1, size: tuple[int, int] = (224, 224)) -> Step:
    """Returns a function that runs a classifier of Table 1 once in a runtime, on the CPU and in float32.

    Each runtime uses its fastest setting: BatchNorm is folded, weights are frozen, and files are loaded for one size of
    images.
    """
    from ..export import FORMATS, ExportableModel

    if runtime not in RUNTIMES:
        raise ValueError(f'runtime must be one of {tuple(RUNTIMES)}, but is {runtime!r}')
    if runtime.startswith('PyTorch'):
        last = runtime.endswith('channels-last')
        return network_step(name, Setting(batch=batch, channels_last=last, phase='inference, BN folded'), size)
    images = torch.randn(batch, 3, *size)
    if (form := RUNTIMES[runtime]) is None:
        # Otherwise dynamo would compile for all batch sizes when it gets a second one.
        compiled = torch.compile(ExportableModel(classifier(name)), dynamic=False, options={'freezing': True})
        return torch.no_grad()(partial(compiled, images))
    return partial(FORMATS[form].load(_exported(name, form, size)[1], images.shape), images)


@cache
def _exported(name: str, form: str, size: tuple[int, int]) -> tuple[TemporaryDirectory, Path]:
    """Exports a classifier, and returns the file and its folder, which is removed when this process ends."""
    from ..export import FORMATS, ExportableModel, export

    folder = TemporaryDirectory()
    path = Path(folder.name, 'model' + FORMATS[form].ending)
    export(ExportableModel(classifier(name)), form, path, size)
    return folder, path


def benchmark_runtimes(
    batches: Sequence[int] = (1,), runtimes: Sequence[str] = tuple(RUNTIMES), budget: float = 20.0
) -> Iterator[Result]:
    """Times ResNet-50 and RedNet-50 on the CPU in float32. All runtimes and models of one batch size take turns.

    Yields milliseconds. ``budget`` is in seconds for each runtime. ImportError is raised before anything is written if
    a package that a runtime needs is missing.
    """
    from ..export import FORMATS, check_format

    for form in filter(None, map(RUNTIMES.get, runtimes)):
        check_format(form, Path('model' + FORMATS[form].ending))
    for batch in batches:
        steps = {(runtime, model): runtime_step(model, runtime, batch) for runtime in runtimes for model in MODELS}
        for (runtime, model), samples in time_in_turns(steps, 'cpu', budget * len(runtimes)).items():
            labels: Labels = {'batch': batch, 'dtype': 'float32', 'runtime': runtime}
            yield Result(labels, model, 'ms', tuple(1e3 * seconds for seconds in samples))
