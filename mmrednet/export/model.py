"""Models that leave PyTorch: what of a toolbox's model is exported, the formats, and the check of every export."""

import copy
import operator
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops.backends.cpu import compile_for_onnxruntime
from ..ops.backends.cpu.build import find_compiler
from ..ops.onnx import one_operator

DTYPES = {'float32': torch.float32, 'float16': torch.float16}
# Largest difference from float64 that is rounding, relative to the range of an output.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2}
AXES = {0: 'batch', 2: 'height', 3: 'width'}

Run = Callable[[Tensor], Sequence[Tensor]]


class Dense(nn.Module):
    """What of a toolbox's model has no data in its control flow: images (N, 3, H, W) in, a tuple of tensors out.

    A classifier gives its logits, (N, classes), and a segmentor its logits at the size of the images. A detector gives
    what its dense head gives, (N, C, H_i, W_i) for each level; of a two-stage detector that is the RPN. Images are
    those that the model's data preprocessor returns.

    Args:
        model (nn.Module): A classifier of mmpretrain, a detector of mmdet or a segmentor of mmseg.

    Raises:
        ValueError: It is another model, or a detector without a dense head.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model.eval()
        bases = {base.__name__ for base in type(model).__mro__}
        if 'BaseClassifier' in bases:
            self._call, self._names = self._classify, ['logits']
        elif 'BaseSegmentor' in bases and hasattr(model, 'encode_decode'):
            self._call, self._names = self._segment, ['logits']
        elif bases & {'SingleStageDetector', 'TwoStageDetector'} and hasattr(self._head, 'loss_by_feat'):
            # The loss takes what the head gives, each by its name.
            self._call, self._names = self._detect, list(signature(self._head.loss_by_feat).parameters)
        else:
            raise ValueError(
                f'{type(model).__name__} is no classifier, no segmentor that decodes maps, and no detector of one or '
                'two stages with a dense head: models of other kinds are not exported'
            )

    @property
    def _head(self) -> Any:
        """The first of the heads that detectors have, which sees all pixels."""
        return getattr(self.model, 'rpn_head', None) or getattr(self.model, 'bbox_head', None)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs, in the order of :meth:`names`."""
        return tuple(tensor for tensors in self._call(images) for tensor in tensors)

    def names(self, images: Tensor) -> list[str]:
        """Returns the names of the outputs: ``logits``, or ``cls_scores_0`` and so on, one for each level."""
        counts = [len(tensors) for tensors in self._call(images)]
        if self._call != self._detect:
            return self._names
        return [f'{name}_{i}' for name, count in zip(self._names, counts, strict=False) for i in range(count)]

    def _classify(self, images: Tensor) -> tuple[Sequence[Tensor], ...]:
        logits = self.model(images, mode='tensor')
        if not isinstance(logits, Tensor):
            raise ValueError(f'a classifier must end in one head to be exported, but gives {type(logits).__name__}')
        return ((logits,),)

    def _segment(self, images: Tensor) -> tuple[Sequence[Tensor], ...]:
        return ((self.model.encode_decode(images, [dict(img_shape=images.shape[2:])]),),)

    def _detect(self, images: Tensor) -> tuple[Sequence[Tensor], ...]:
        outputs = self._head(self.model.extract_feat(images))
        return tuple((output,) if isinstance(output, Tensor) else output for output in outputs)


def write_torch_export(network: Dense, images: Tensor, path: Path) -> None:
    """Writes ``.pt2``, in which involution is one operator: ``import mmrednet.ops``, then ``torch.export.load``."""
    torch.export.save(_capture(network, images), path)


def write_aotinductor(network: Dense, images: Tensor, path: Path) -> None:
    """Compiles to ``.pt2``, which calls our operator: ``import mmrednet.ops``, then ``aoti_load_package``."""
    torch._inductor.aoti_compile_and_package(_capture(network, images), package_path=str(path))


def write_torchscript(network: Dense, images: Tensor, path: Path) -> None:
    """Traces and writes: ``import mmrednet.ops``, then ``torch.jit.load``."""
    torch.jit.trace(network, images, check_trace=False).save(path)


def write_onnx(network: Dense, images: Tensor, path: Path) -> None:
    """Writes ONNX, in standard operators alone."""
    from onnxscript import optimizer

    program: Any = torch.onnx.export(
        network,
        (images,),
        input_names=['images'],
        output_names=network.names(images),
        dynamo=True,
        dynamic_shapes=_dynamic_shapes(),
        # Its rules took three quarters of the time for a RedNet-26; runtimes have rules of their own.
        optimize=False,
        verbose=False,
    )
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    program.save(path, external_data=False)


def write_onnxruntime(network: Dense, images: Tensor, path: Path) -> None:
    """Writes ONNX in which involution is one operator, and the library of that operator beside it as ``.so``."""
    compile_for_onnxruntime(path.with_suffix('.so'))
    with one_operator():
        write_onnx(network, images, path)


def write_openvino(network: Dense, images: Tensor, path: Path) -> None:
    """Writes OpenVINO's ``.xml``, and the weights beside it as ``.bin``, from ONNX."""
    import openvino

    source = path.with_suffix('.onnx')
    write_onnx(network, images, source)
    openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=False)
    source.unlink()


def load_torch_export(path: Path) -> Run:
    """Returns what runs the file; so do the functions that follow."""
    return torch.export.load(path).module()


def load_aotinductor(path: Path) -> Run:
    """Loads what :func:`write_aotinductor` wrote."""
    return torch._inductor.aoti_load_package(str(path))


def load_torchscript(path: Path) -> Run:
    """Loads what :func:`write_torchscript` wrote."""
    return torch.jit.load(path)


def load_onnx(path: Path, shape: Sequence[int] | None = None, library: Path | None = None) -> Run:
    """Loads ONNX into ONNX Runtime, on the CPU with torch's threads, for images of any shape or of this one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Between two runs, its threads would wait for work at the expense of what runs then.
    options.add_session_config_entry('session.force_spinning_stop', '1')
    if library:
        options.register_custom_ops_library(str(library))
    if shape:
        for axis, name in AXES.items():
            options.add_free_dimension_override_by_name(name, shape[axis])
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda images: [torch.from_numpy(output) for output in session.run(None, {'images': images.numpy()})]


def load_onnxruntime(path: Path, shape: Sequence[int] | None = None) -> Run:
    """Loads what :func:`write_onnxruntime` wrote."""
    return load_onnx(path, shape, path.with_suffix('.so'))


def load_openvino(path: Path, shape: Sequence[int] | None = None) -> Run:
    """Loads OpenVINO's files likewise, in the precision that they have."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    if shape:
        model.reshape(list(shape))
    settings = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': torch.get_num_threads()}
    compiled = core.compile_model(model, 'CPU', settings)
    return lambda images: [torch.from_numpy(output) for output in compiled(images.numpy()).values()]


class Format(NamedTuple):
    """A file format: how files end, how one is written and run, and the packages that both need."""

    ending: str
    write: Callable[[Dense, Tensor, Path], None]
    load: Callable[..., Run]
    packages: tuple[str, ...] = ()


FORMATS = {
    'onnx': Format('.onnx', write_onnx, load_onnx, ('onnx', 'onnxscript', 'onnxruntime')),
    'onnxruntime': Format('.onnx', write_onnxruntime, load_onnxruntime, ('onnx', 'onnxscript', 'onnxruntime')),
    'torch-export': Format('.pt2', write_torch_export, load_torch_export),
    'aotinductor': Format('.pt2', write_aotinductor, load_aotinductor),
    'torchscript': Format('.pt', write_torchscript, load_torchscript),
    'openvino': Format('.xml', write_openvino, load_openvino, ('onnx', 'onnxscript', 'openvino')),
}


def check_format(name: str, path: Path) -> None:
    """Checks what can be known before there is a model.

    Raises:
        ValueError: The path has not the format's ending.
        ImportError: A package is missing, or too old.
        RuntimeError: There is no C++ compiler, which ``aotinductor`` and ``onnxruntime`` need.
    """
    form = FORMATS[name]
    if path.suffix != form.ending:
        raise ValueError(f'a file of format {name} must end in {form.ending}, but {path} does not: rename it')
    missing = [package for package in form.packages if find_spec(package) is None]
    if missing:
        raise ImportError(f'{name} needs {" and ".join(missing)}: pip install {" ".join(missing)}')
    if name in ('aotinductor', 'onnxruntime'):
        find_compiler()
    if name == 'onnxruntime' and not hasattr(torch.onnx, 'ops'):
        raise ImportError(f'{name} needs torch 2.8 or newer, but {torch.__version__} is installed: upgrade it')


def export(network: Dense, name: str, path: Path, size: tuple[int, int]) -> None:
    """Writes a network in the format ``name``, for any batch size, height and width.

    Args:
        network (Dense): The network, in the dtype that the file is to have.
        name (str): One of ``FORMATS``.
        path (Path): The file.
        size (tuple[int, int]): Height and width of the images that it is traced with.
    """
    images = example(network, trace_size(size))
    network = _with_sizes_left_open(copy.deepcopy(network))
    with torch.no_grad(), _silent(), _any_size():
        FORMATS[name].write(network, images, path)


def trace_size(size: tuple[int, int]) -> tuple[int, int, int]:
    """Returns the batch size, height and width to trace with: sizes that are 1 or equal stand for themselves alone."""
    height, width = size[0] | 1, size[1] | 1
    return 2, height, width + 2 if width == height else width


def check_sizes(size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """Returns the batch sizes, heights and widths that an export is checked at, other than that of the trace too."""
    height, width = size
    return [(1, height, width), trace_size(size), (1, height * 3 // 4 | 1, width * 5 // 4 | 1)]


def example(network: nn.Module, size: tuple[int, int, int]) -> Tensor:
    """Returns random images (N, 3, H, W), always the same, in the network's dtype."""
    batch, height, width = size
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    return images.to(next(network.parameters()).dtype)


class Comparison(NamedTuple):
    """An export beside PyTorch: largest differences from float64, as part of an output's range, and seconds."""

    size: tuple[int, int, int]
    difference: float
    own: float  # PyTorch's difference, in the network's dtype
    pytorch: float
    exported: float


def compare(network: Dense, run: Run, size: tuple[int, int]) -> Iterator[Comparison]:
    """Holds an export against the network in float64, at each of :func:`check_sizes`, and times it beside the network.

    Yields:
        Comparison: The difference is infinite where a value is not finite or a shape is another.
    """
    truth = copy.deepcopy(network).double()
    with torch.no_grad(), _silent():
        for at in check_sizes(size):
            images = example(network, at)
            expected = truth(images.double())
            difference, own = (
                max(_difference(*pair) for pair in zip(outputs, expected, strict=True))
                for outputs in (run(images), network(images))
            )
            yield Comparison(at, difference, own, _seconds(network, images), _seconds(run, images))


def _difference(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape or not (actual.isfinite().all() and expected.isfinite().all()):
        return float('inf')
    spread = expected.max() - expected.min()
    return float((actual - expected).abs().max() / spread.clamp(min=torch.finfo(torch.float32).tiny))


def _seconds(run: Callable[[Tensor], Any], images: Tensor) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - start)
    return min(times)


def _capture(network: Dense, images: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(
        network,
        (images,),
        dynamic_shapes=_dynamic_shapes(),
        strict=False,
        # What torch cannot prove of all sizes, the file asserts of each that it is given.
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def _dynamic_shapes() -> dict:
    return {'images': {axis: torch.export.Dim(name) for axis, name in AXES.items()}}


def _with_sizes_left_open(network: Dense) -> Dense:
    """Replaces mmseg's Upsample, whose ``int(size * factor)`` an export takes for a constant, by torch's."""
    for module in list(network.modules()):
        child: Any
        for name, child in module.named_children():
            # Whole factors, and all of mmseg's heads have such, give the same pixels.
            if type(child).__module__.startswith('mmseg.') and type(child).__name__ == 'Upsample' and not child.size:
                setattr(module, name, nn.Upsample(None, child.scale_factor, child.mode, child.align_corners))
    return network


@contextmanager
def _any_size() -> Iterator[None]:
    """Lets torch export poolings for sizes that are not known, and in half of the time."""
    # To round down, poolings ask whether the size is odd, and the export would be for odd sizes or for even ones; the
    # operator // rounds down without asking.
    div_rtn = getattr(torch._meta_registrations, 'div_rtn', None)
    torch._meta_registrations.div_rtn = operator.floordiv
    try:
        # The first is a cache in which nothing of symbolic size is found; the second takes no size for 1.
        with (
            torch._dynamo.config.patch(fake_tensor_cache_enabled=False),
            torch.fx.experimental._config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
        ):
            yield
    finally:
        torch._meta_registrations.div_rtn = div_rtn  # type: ignore[assignment]


@contextmanager
def _silent() -> Iterator[None]:
    """Leaves out what the exporters say of themselves to their developers."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
