"""The file formats: how each one is written, and how its runtime loads it."""

import copy
import errno
import io
import operator
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import one_line
from ..ops.backends.cpu import compile_for_onnxruntime
from ..ops.backends.cpu.build import find_compiler
from ..ops.onnx import one_operator
from .model import ExportableModel, example, trace_size

FULL = 1 << 20  # bytes. If a disk has less free space after an error, it is full.
# The axes of the images whose sizes a file leaves open.
OPEN_SIZES = {'images': {axis: torch.export.Dim(name) for axis, name in {0: 'batch', 2: 'height', 3: 'width'}.items()}}

Run = Callable[[Tensor], Sequence[Tensor]]


def write_torch_export(network: ExportableModel, images: Tensor, path: Path) -> None:
    """Writes ``.pt2`` in which involution is one operator, which ``import mmrednet.ops`` registers."""
    # torch's own writer ends the process if the disk is full.
    buffer = io.BytesIO()
    torch.export.save(_capture(network, images), buffer)
    path.write_bytes(buffer.getvalue())


def write_aotinductor(network: ExportableModel, images: Tensor, path: Path) -> None:
    """Compiles to ``.pt2``, which calls the operator that ``import mmrednet.ops`` registers."""
    torch._inductor.aoti_compile_and_package(_capture(network, images), package_path=str(path))


def write_onnx(network: ExportableModel, images: Tensor, path: Path) -> None:
    """Writes ONNX in standard operators."""
    from onnxscript import optimizer

    program: Any = torch.onnx.export(
        network,
        (images,),
        input_names=['images'],
        output_names=network.names(images),
        dynamo=True,
        dynamic_shapes=OPEN_SIZES,
        # The optimizer's rules took three quarters of the time for a RedNet-26. Runtimes have their own rules.
        optimize=False,
        verbose=False,
    )
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    program.model.ir_version = 9  # ONNX Runtime 1.17, the first with opset 20, reads no newer files
    program.save(path, external_data=False)


def load_onnx(path: Path) -> Run:
    """Loads ONNX, and the library beside it if there is one, into ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Otherwise its threads keep a core busy between two runs and slow down what is measured then.
    options.add_session_config_entry('session.force_spinning_stop', '1')
    if (library := path.with_suffix('.so')).is_file():
        options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda images: [torch.from_numpy(output) for output in session.run(None, {'images': images.numpy()})]


def write_onnxruntime(network: ExportableModel, images: Tensor, path: Path) -> None:
    """Writes ONNX in which involution is one operator, and beside it the library of that operator as ``.so``."""
    compile_for_onnxruntime(path.with_suffix('.so'))
    with one_operator():
        write_onnx(network, images, path)


def write_openvino(network: ExportableModel, images: Tensor, path: Path) -> None:
    """Writes OpenVINO's ``.xml``, and beside it the weights as ``.bin``. Both are converted from ONNX."""
    import openvino

    source = path.with_suffix('.onnx')
    write_onnx(network, images, source)
    openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=False)
    source.unlink()


def load_openvino(path: Path) -> Run:
    """Loads the files of :func:`write_openvino` into OpenVINO on the CPU, and computes in float32."""
    import openvino

    core = openvino.Core()
    settings = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': torch.get_num_threads()}
    compiled = core.compile_model(core.read_model(path), 'CPU', settings)
    return lambda images: [torch.from_numpy(output) for output in compiled(images.numpy()).values()]


class Format(NamedTuple):
    """A file format: its ending, functions that write and load files, and what they need."""

    ending: str
    write: Callable[[ExportableModel, Tensor, Path], None]
    load: Callable[[Path], Run]
    packages: tuple[str, ...] = ()
    compiles: bool = False


FORMATS = {
    'onnx': Format('.onnx', write_onnx, load_onnx, ('onnx', 'onnxscript', 'onnxruntime')),
    'onnxruntime': Format('.onnx', write_onnxruntime, load_onnx, ('onnx', 'onnxscript', 'onnxruntime'), True),
    'openvino': Format('.xml', write_openvino, load_openvino, ('onnx', 'onnxscript', 'openvino')),
    'torch-export': Format('.pt2', write_torch_export, lambda path: torch.export.load(path).module()),
    'aotinductor': Format(
        '.pt2', write_aotinductor, lambda path: torch._inductor.aoti_load_package(str(path)), (), True
    ),
}


def check_format(name: str, path: Path) -> None:
    """Checks what can be checked before a model is built. Raises ValueError, ImportError or RuntimeError."""
    if name not in FORMATS:
        raise ValueError(f'the format must be one of {", ".join(FORMATS)}, but is {name!r}')
    form = FORMATS[name]
    if path.suffix != form.ending:
        raise ValueError(f'a file of format {name} must end in {form.ending}, but {path} does not: rename it')
    if not path.parent.is_dir():
        raise ValueError(f'there is no folder {path.parent}: make it, or name another')
    if missing := [package for package in form.packages if find_spec(package) is None]:
        raise ImportError(f'{name} needs {" and ".join(missing)}: pip install {" ".join(missing)}')
    if form.compiles:
        find_compiler()
    if name == 'onnxruntime' and not hasattr(torch.onnx, 'ops'):
        raise ImportError(f'{name} needs torch 2.8 or newer, but {torch.__version__} is installed: upgrade it')


def export(network: ExportableModel, name: str, path: Path, size: tuple[int, int]) -> None:
    """Writes a network as a file that takes any batch size, height and width. The file is not checked.

    Args:
        network (ExportableModel): The network, in the dtype that the file is to have.
        name (str): The format, one of ``FORMATS``.
        path (Path): The file.
        size (tuple[int, int]): Approximate height and width of the images that the network is traced with.

    Raises:
        OSError: The disk is full.
        ValueError: The network cannot be exported.
    """
    images = example(network, trace_size(size))
    traced = _with_sizes_left_open(copy.deepcopy(network))
    try:
        with torch.no_grad(), warnings.catch_warnings(), _any_size():
            warnings.simplefilter('ignore')  # exporters warn their own developers
            FORMATS[name].write(traced, images, path)
    except Exception as error:  # an exporter raises errors of any type
        if shutil.disk_usage(path.parent).free < FULL:  # torch's own error is a page of C++
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        kind = type(network.model).__name__
        raise ValueError(f'this {kind} cannot be exported as {name}: {one_line(error)}') from error


def _capture(network: ExportableModel, images: Tensor) -> torch.export.ExportedProgram:
    # The last option checks conditions that torch cannot prove for all sizes when the file runs.
    options: dict = dict(strict=False, prefer_deferred_runtime_asserts_over_guards=True)
    return torch.export.export(network, (images,), dynamic_shapes=OPEN_SIZES, **options)


def _with_sizes_left_open(network: ExportableModel) -> ExportableModel:
    """Replaces mmseg's Upsample by torch's. Its ``int(size * factor)`` would become a constant."""
    for module in list(network.modules()):
        child: Any
        for name, child in module.named_children():
            # All heads of mmseg have whole factors, for which both give the same pixels.
            if type(child).__module__.startswith('mmseg.') and type(child).__name__ == 'Upsample' and not child.size:
                setattr(module, name, nn.Upsample(None, child.scale_factor, child.mode, child.align_corners))
    return network


@contextmanager
def _any_size() -> Iterator[None]:
    """Lets torch export pooling layers for open sizes, and halves the time that an export takes."""
    # Pooling rounds down by a condition on odd sizes, which would restrict the export to odd or to even sizes. The
    # operator // rounds down without a condition.
    div_rtn = getattr(torch._meta_registrations, 'div_rtn', None)
    torch._meta_registrations.div_rtn = operator.floordiv
    try:
        # The cache never contains an operator with open sizes, so it only costs time. The second setting keeps torch
        # from treating a size as 1.
        with (
            torch._dynamo.config.patch(fake_tensor_cache_enabled=False),
            torch.fx.experimental._config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
        ):
            yield
    finally:
        torch._meta_registrations.div_rtn = div_rtn  # type: ignore[assignment]
