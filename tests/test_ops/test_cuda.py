"""The CUDA backend: plans and compilation, which need no GPU, and tests that are skipped without one."""

import itertools
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mmrednet.benchmark import naive_cuda
from mmrednet.ops import backends, involution2d
from mmrednet.ops.backends import cuda, pytorch, reference
from mmrednet.ops.backends.cuda import narrow
from mmrednet.ops.backends.cuda.launch import Device
from mmrednet.ops.backends.cuda.plan import plan_launch
from mmrednet.ops.backends.cuda.problem import Layout
from mmrednet.ops.backends.cuda.specialisation import Specialisation

FUNCTIONS = tuple(cuda.WRITTEN)
HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32, torch.float64)
HOT = Specialisation(torch.float32, (7, 7), (1, 1), (1, 1), wide=False, phase=3)
PIXELS = replace(HOT, kernels='pixels', phase=0)
BANDS = replace(PIXELS, kernels='bands')
# Options that CuPy adds to those of a module.
CUPY = ('-ftz=true', '--device-as-default-execution-space')

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


def specialisations():
    """Yields the kernels of RedNet, its necks and heads and the paper's ablations, and of large windows and tensors."""
    for dtype, size, stride in itertools.product(DTYPES, (3, 7), (1, 2)):
        same = {'dtype': dtype, 'kernel_size': (size, size), 'stride': (stride, stride)}
        yield replace(HOT, **same, phase=size // 2)
        yield replace(PIXELS, **same)
    for size in (5, 9, 11):
        yield replace(HOT, kernel_size=(size, size), phase=size // 2 % 4)
    yield replace(HOT, dilation=(2, 2), phase=6 % 4)
    for dtype in DTYPES:
        yield replace(PIXELS, dtype=dtype, kernel_size=(9, 9))
    for dtype, size in itertools.product(DTYPES, (7, 9)):
        same = {'dtype': dtype, 'kernel_size': (size, size)}
        yield replace(HOT, **same, kernels='narrow', phase=0, narrow=narrow.MOST_PIXELS[dtype.itemsize])
    for dtype, size in itertools.product(HALF, ((3, 3), (7, 7), (9, 5))):
        yield replace(BANDS, dtype=dtype, kernel_size=size)
    yield replace(HOT, wide=True)
    for last in (PIXELS, BANDS):
        yield replace(last, dtype=torch.bfloat16, wide=True)


def compile_for(architecture, source, options):
    """Compiles to machine code as CuPy does, and returns the compiler's report on each function."""
    nvrtc = pytest.importorskip('cupy', reason='needs CuPy').cuda.nvrtc
    program = nvrtc.createProgram(source, 'kernels.cu', (), ())
    try:
        nvrtc.compileProgram(program, [*options, *CUPY, f'-arch=sm_{architecture}', '--ptxas-options=-v'])
    finally:
        log = nvrtc.getProgramLog(program)
        nvrtc.destroyProgram(program)
    return dict(re.findall(r"Compiling entry function '(\w+)'(.*?)(?=Compiling|$)", log, re.DOTALL))


def families(dtype, size):
    """Yields a specialisation of each family for a square window, and the oldest architecture that the family needs."""
    plain = replace(HOT, dtype=dtype, kernel_size=(size, size), phase=size // 2)
    yield plain, 0
    yield replace(plain, kernels='narrow', narrow=7), 0
    yield replace(plain, kernels='pixels', phase=0), 0
    if dtype in HALF:
        yield replace(plain, kernels='bands', phase=0), 80


def check_architectures(*specialisations):
    """Compiles the source for every architecture that NVRTC has and on which it can be chosen."""
    nvrtc = pytest.importorskip('cupy', reason='needs CuPy').cuda.nvrtc
    architectures = nvrtc.getSupportedArchs()
    assert {80, 90} <= set(architectures)
    for architecture in architectures:
        for specialisation, oldest in specialisations:
            if architecture >= oldest:
                source, options = specialisation.source(*FUNCTIONS), specialisation.options
                assert compile_for(architecture, source, options).keys() == set(FUNCTIONS)


@pytest.mark.full
def test_compiles_for_every_architecture():
    """The families' smallest kernels. On sm_75, ``start_copy`` has another form than from sm_80 on."""
    tiled = next(families(torch.float64, 2))
    _, *others = families(torch.bfloat16, 2)
    check_architectures(tiled, *others)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', DTYPES)
def test_compiles_a_window_of_7x7_for_every_architecture(dtype):
    check_architectures(*families(dtype, 7))


@pytest.mark.parametrize('dtype', naive_cuda.DTYPES)
@pytest.mark.parametrize('first', (pytest.param(0, marks=pytest.mark.full, id='every'), pytest.param(-1, id='newest')))
def test_compiles_the_naive_kernels_for_architectures(first, dtype):
    nvrtc = pytest.importorskip('cupy', reason='needs CuPy').cuda.nvrtc
    for architecture in nvrtc.getSupportedArchs()[first:]:
        compiled = compile_for(architecture, naive_cuda.SOURCE.read_text(), naive_cuda.options(dtype))
        assert compiled.keys() == set(FUNCTIONS)


@pytest.mark.full
@pytest.mark.parametrize('architecture', [80, 90])
def test_no_specialisation_spills(architecture):
    tried = [s for s in specialisations() if architecture == 90 or s.kernel_size[0] >= 7]
    for specialisation in tried:
        compiled = compile_for(architecture, specialisation.source(*FUNCTIONS), specialisation.options)
        assert len(compiled) == 3
        for function, report in compiled.items():
            spills = re.findall(r'(\d+) bytes spill (?:stores|loads)', report)
            assert spills == ['0', '0'], f'{function} of {specialisation} on sm_{architecture}: {report}'


def test_cupy_flushes_subnormals(monkeypatch):
    """The module is compiled by CuPy's own function, with the options that CuPy adds."""
    compiler = pytest.importorskip('cupy.cuda.compiler', reason='needs CuPy')
    loaded = []
    module = SimpleNamespace(load=loaded.append, _set_mapping=lambda mapping: None)
    monkeypatch.setenv('CUPY_CACHE_IN_MEMORY', '1')
    monkeypatch.setattr(compiler, 'function', SimpleNamespace(Module=lambda: module))
    monkeypatch.setattr(compiler, '_get_arch_for_options_for_nvrtc', lambda arch: ('-arch=compute_90', 'ptx'))
    for dtype, instruction in ((torch.float32, 'fma.rn.ftz.f32'), (torch.float64, 'fma.rn.f64')):
        smallest = replace(HOT, dtype=dtype, kernel_size=(1, 1))
        compiler._compile_module_with_cache(smallest.source('forward'), smallest.options, arch='90')
        ptx = loaded.pop().decode()
        assert set(re.findall(r'fma\.rn[.\w]*', ptx)) == {instruction}


@pytest.fixture
def cupy(monkeypatch):
    """Returns CuPy with an imitation of a GPU. Nothing is loaded before the test, and nothing stays loaded after it."""
    module = pytest.importorskip('cupy', reason='needs CuPy')
    caches = (backends._load, cuda.load, cuda._function, cuda._device)
    for cached in caches:
        cached.cache_clear()
    names = (name for name in dir(module.cuda.runtime) if name.startswith('cudaDevAttr'))
    attributes = {name.removeprefix('cudaDevAttr'): 227 << 10 for name in names}
    gpu = SimpleNamespace(attributes=attributes, compute_capability='90')
    monkeypatch.setattr(module.cuda, 'Device', lambda index: gpu)
    for name, value in (('is_available', True), ('is_current_stream_capturing', False), ('current_device', 0)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    yield module
    for cached in caches:
        cached.cache_clear()


def test_the_first_cause_of_a_failed_import_is_shown(tmp_path, monkeypatch):
    """CuPy puts the cause into a page of text that begins with a line of equals signs."""
    (tmp_path / 'cupy.py').write_text(
        "try:\n    raise ImportError('libnvrtc.so.12: cannot open shared object file')\n"
        "except ImportError as error:\n    raise ImportError('====\\nFailed to import CuPy.\\n====') from error\n"
    )
    for name in [name for name in sys.modules if name.partition('.')[0] == 'cupy']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.version, 'cuda', '12.4')
    with pytest.raises(RuntimeError, match=r"need CuPy \(libnvrtc.so.12: cannot open .*\): pip install 'cupy-cuda12x"):
        cuda.load.__wrapped__()


def test_a_compiler_or_driver_that_fails_leads_to_the_next_backend(cupy, monkeypatch):
    def fail(**arguments):
        raise cupy.cuda.compiler.CompileException('nvrtc: error: invalid value', '', '', ())

    monkeypatch.setattr(cupy, 'RawModule', fail)
    with pytest.warns(UserWarning, match="cannot compile or load.*invalid value.*'torch' is used"):
        assert backends.find(None, torch.device('cuda')) is pytorch
    with pytest.raises(RuntimeError, match="cannot compile or load.*invalid value.*backend='torch'"):
        backends.find('cuda', torch.device('cuda'))


def test_limits_have_names_that_cupy_has(cupy):
    limits = cuda._device(0)
    assert limits.shared == 64 << 10 and limits.multiprocessors == 227 << 10 and limits.tensor_cores
    cupy.cuda.Device(0).compute_capability = '75'
    cuda._device.cache_clear()
    assert not cuda._device(0).tensor_cores


def test_nothing_is_compiled_during_a_capture(cupy, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
    assert backends.find(None, torch.device('cuda')) is cuda
    with pytest.raises(RuntimeError, match='forward .* once before capturing'):
        cuda._function(0, HOT, 'forward')


def plan(function, x, k, device=Device()):  # noqa: B008
    layouts = (Layout.of(t) for t in (x, k, x))
    return plan_launch(function, *layouts, (1, 1), (3, 3), (1, 1), device)


def test_sizes_share_a_module():
    planned = set()
    for size in range(50):
        n, h, w = 1 + size % 3, 20 + 7 * size, 333 - 3 * size
        x, k = torch.empty(n, 32, h, w, device='meta'), torch.empty(n, 2, 7, 7, h, w, device='meta')
        for function in FUNCTIONS:
            planned.add(plan(function, x, k).specialisation)
    assert planned == {HOT}


def test_a_window_that_no_block_could_hold_is_summed_by_pytorch(monkeypatch):
    monkeypatch.setattr(cuda, '_device', lambda index: Device())
    geometry = (1, 1), (90, 90), (90, 90)
    x, k, grad = torch.randn(1, 6, 5, 9), torch.randn(1, 1, 3, 3, 5, 9), torch.randn(1, 6, 5, 9)
    got = torch.empty_like(x), torch.empty_like(x), torch.empty_like(k)
    cuda.involution2d(got[0], x, k, *geometry)
    cuda.grad_input(got[1], grad, k, *geometry)
    cuda.grad_kernel(got[2], grad, x, *geometry)
    x, k = x.double().requires_grad_(), k.double().requires_grad_()
    y = reference.involution2d(x, k, *geometry)
    for a, b in zip(got, (y, *torch.autograd.grad(y, (x, k), grad.double())), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    'limits, kernels', [(Device(), 'pixels'), (Device(shared=64 << 10, tensor_cores=True), 'bands')]
)
def test_tensor_cores_compute_16_bit_channels_last(limits, kernels):
    options = dict(dtype=torch.bfloat16, device='meta', memory_format=torch.channels_last)
    x, k = torch.empty(8, 64, 56, 56, **options), torch.empty(8, 4 * 49, 56, 56, **options)
    for function in FUNCTIONS:
        launch = plan(function, x, k.unflatten(1, (4, 7, 7)), limits)
        assert launch.specialisation.kernel_size == (7, 7) and launch.specialisation.kernels == kernels
        assert launch.grid * launch.block >= 56 * 56 // 4  # a thread computes a strip of 4 pixels at most


def test_large_tensors_have_wide_indices():
    for n, wide in ((41, False), (45, True)):
        x, k = torch.empty(n, 16, 1000, 1000, device='meta'), torch.empty(n, 1, 7, 7, 1000, 1000, device='meta')
        assert plan('forward', x, k).specialisation.wide == wide


def test_steps_that_are_never_taken_may_be_of_any_size():
    """The first image of a batch has such a step if an image has more than 2^31 elements."""
    image, k = torch.empty(1, 16, 20, 20, device='meta'), torch.empty(1, 1, 7, 7, 20, 20, device='meta')
    far = image.as_strided(image.shape, (1 << 31, *image.stride()[1:]))
    assert plan('forward', far, k).arguments == plan('forward', image, k).arguments


@needs_gpu
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('dtype', DTYPES)
def test_matches_float64(dtype, channels_last):
    _check(*_problem(dtype, channels_last))


@needs_gpu
def test_works_on_another_stream():
    x, k = _problem(torch.float32)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # The stream is busy for so long that a kernel on another stream would read x before it is written.
        torch.cuda._sleep(10_000_000)
        late = x.detach() * 2
        y = involution2d(late, k.detach(), backend='cuda')
    stream.synchronize()
    expected = reference.involution2d(x.double() * 2, k.double(), (1, 1), (3, 3), (1, 1))
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)


@needs_gpu
def test_a_graph_replays_it():
    x, k = (t.detach() for t in _problem(torch.float32))
    involution2d(x, k, backend='cuda')  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = involution2d(x, k, backend='cuda')
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(y, involution2d(x, k, backend='cuda'))


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_two_devices():
    for device in ('cuda:1', 'cuda:0'):
        _check(*_problem(torch.float32, device=device))


@needs_gpu
def test_same_bits_every_time():
    x, k = _problem(torch.float32)
    runs = []
    for _ in range(3):
        y = involution2d(x, k, backend='cuda')
        runs.append((y, *torch.autograd.grad(y.square().sum(), (x, k))))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def _problem(dtype, channels_last=False, device='cuda'):
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(4, 64, 28, 35, device=device).to(dtype, memory_format=memory_format)
    k = torch.randn(4, 4 * 49, 28, 35, device=device).to(dtype, memory_format=memory_format)
    return x.requires_grad_(), k.unflatten(1, (4, 7, 7)).detach().requires_grad_()


def _check(x, k):
    y = involution2d(x, k, backend='cuda')
    grad = torch.randn_like(y)
    got = y, *torch.autograd.grad(y, (x, k), grad)
    x, k = (t.detach().double().requires_grad_() for t in (x, k))
    y = reference.involution2d(x, k, (1, 1), (3, 3), (1, 1))
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6, torch.float64: 1e-14}[got[0].dtype]
    for a, b in zip(got, (y, *torch.autograd.grad(y, (x, k), grad.double())), strict=True):
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max()
