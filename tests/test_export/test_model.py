"""Exports compared with PyTorch: the operators in ONNX, then whole models in every format."""

import copy
from importlib import import_module

import pytest
import torch
from helpers import (
    CASES,
    ROOT,
    TOLERANCE,
    check,
    make_arguments,
    make_fused_arguments,
    registry,
    run,
    run_python,
    small_disk,
)
from torch import nn
from torch._decomp import decomposition_table

from mmrednet.__main__ import main
from mmrednet.layers import Involution
from mmrednet.ops import fused_involution2d, involution2d

OPERATORS = {
    involution2d: (torch.ops.mmrednet.involution2d.default, make_arguments),
    fused_involution2d: (torch.ops.mmrednet.fused_involution2d.default, make_fused_arguments),
}
BACKBONE = """
backbone = dict(
    type='mmrednet.RedNet', depth=26, base_channels=16, stem_channels=32, kernel_size=3, out_indices=(0, 1, 2, 3),
    zero_init_residual=False)
neck = dict(type='mmrednet.InvolutionFPN', in_channels=[64, 128, 256, 512], out_channels=16, num_outs=4,
            involution_cfg=dict(kernel_size=3))
"""
CONFIGS = {
    'classifier': """
default_scope = 'mmpretrain'
backbone.update(num_stages=2, out_indices=(1, ))
model = dict(
    type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=128))
""",
    'detector': """
default_scope = 'mmdet'
model = dict(
    type='RetinaNet', backbone=backbone, neck=neck,
    bbox_head=dict(
        type='RetinaHead', num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1,
        anchor_generator=dict(type='AnchorGenerator', ratios=[1.0], scales=[4], strides=[4, 8, 16, 32])))
""",
    'segmentor': """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder', backbone=backbone, neck=neck, train_cfg=dict(), test_cfg=dict(mode='whole'),
    decode_head=dict(
        type='FPNHead', in_channels=[16] * 4, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32], channels=16,
        num_classes=5, norm_cfg=dict(type='SyncBN'), align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss')))
""",
}


def write_config(folder, kind):
    path = folder / f'{kind}.py'
    path.write_text(BACKBONE + CONFIGS[kind])
    return path


def export(folder, kind, name, *options):
    """Exports with the command, and returns the file."""
    from mmrednet.export import FORMATS

    path = folder / f'{kind}{FORMATS[name].ending}'
    status = main(
        [
            'export',
            str(write_config(folder, kind)),
            '--format',
            name,
            '--out',
            str(path),
            '--size',
            '64',
            '64',
            *options,
        ]
    )
    return path if status == 0 else None


@pytest.mark.parametrize('case', CASES[:-1], ids=str)  # the last is an empty batch, which nobody deploys
@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('operator', OPERATORS, ids=lambda operator: operator.__name__)
def test_decomposition_matches_float64_reference(operator, dtype, case):
    overload, make = OPERATORS[operator]
    arguments = make(*case, dtype, 'cpu')
    check(operator, run(decomposition_table[overload], *arguments), *arguments)


class Layers(nn.Module):
    """Involutions of many geometries; the second is not fused."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                Involution(8, (3, 5), (2, 1), (1, 2), group_channels=4),
                Involution(8, 3, 3, group_channels=None, fused=False),
                Involution(8, 3, group_channels=1, padding=0),
                Involution(8, (2, 4), padding=(0, 1), group_channels=2),
            ]
        )

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


def test_nothing_but_onnx_decomposes(monkeypatch):
    """torch.compile keeps one operator and its rules for output shapes, also if sizes are not known."""
    for overload, _ in OPERATORS.values():
        monkeypatch.setitem(decomposition_table, overload, None)  # a call would fail
    layers = nn.ModuleList([Involution(8, 3, group_channels=4, fused=fused).eval() for fused in (None, False)])
    x = torch.rand(2, 8, 9, 11)
    for layer in layers:
        compiled = torch.compile(layer, dynamic=True, backend='aot_eager', fullgraph=True)
        with torch.no_grad():
            assert torch.equal(compiled(x), layer(x)) and torch.equal(compiled(x[:, :, 2:]), layer(x[:, :, 2:]))


@pytest.mark.parametrize(
    ('dynamo', 'fused'), (pytest.param(True, True, marks=pytest.mark.full), (False, True), (False, False))
)
def test_plain_onnx_export_writes_standard_operators(dynamo, fused, tmp_path):
    pytest.importorskip('onnxscript')
    onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    model, path = Layers().eval(), tmp_path / 'layers.onnx'
    for layer in model.modules():
        if isinstance(layer, Involution) and layer.last_convolution() is not None:
            layer.fused = fused
    # With less than 'same' padding a layer crops its input. The smallest size assures torch that something is left.
    sizes = {0: torch.export.Dim('batch')} | {
        i: torch.export.Dim(name, min=7) for i, name in ((2, 'height'), (3, 'width'))
    }
    dynamic = dict(dynamic_shapes=(sizes,)) if dynamo else dict(dynamic_axes=dict(x=dict(enumerate('nchw'))))
    with torch.no_grad():
        torch.onnx.export(model, (torch.rand(2, 8, 15, 18),), path, dynamo=dynamo, input_names=['x'], **dynamic)
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} == {''}
    session = runtime.InferenceSession(path)
    truth = copy.deepcopy(model).double()
    for size in ((1, 8, 15, 17), (3, 8, 14, 9), (2, 8, 40, 7)):
        x = torch.rand(size)
        expected = [output.detach() for output in truth(x.double())]
        for actual, one in zip(session.run(None, {'x': x.numpy()}), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(actual).double(), one, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope='module')
def library(tmp_path_factory):
    """The library of operators for ONNX Runtime."""
    from mmrednet.ops.backends.cpu import compile_for_onnxruntime

    path = tmp_path_factory.mktemp('library') / 'involution.so'
    try:
        compile_for_onnxruntime(path)
    except RuntimeError as error:
        if 'headers' in str(error) or 'no C++ compiler' in str(error):
            pytest.skip(str(error))
        raise
    return path


@pytest.mark.parametrize('dtype', (torch.float32, torch.float16), ids=str)
def test_our_operator_in_onnx_runtime(tmp_path, library, dtype):
    from mmrednet.ops.onnx import one_operator

    pytest.importorskip('onnxscript')
    onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    model, path = Layers().to(dtype).eval(), tmp_path / 'layers.onnx'
    sizes = {0: torch.export.Dim('batch')} | {i: torch.export.Dim(f'size_{i}', min=7) for i in (2, 3)}
    before = dict(decomposition_table)
    with torch.no_grad(), one_operator():
        images = torch.rand(2, 8, 15, 18, dtype=dtype)
        torch.onnx.export(model, (images,), path, dynamo=True, dynamic_shapes=(sizes,), input_names=['x'])
    assert decomposition_table == before
    nodes = onnx.load(path).graph.node
    assert [(node.domain, node.op_type) for node in nodes if node.domain] == [('mmrednet', 'involution2d')] * 4
    options = runtime.SessionOptions()
    options.register_custom_ops_library(str(library))
    session = runtime.InferenceSession(path, options)
    truth, tolerance = copy.deepcopy(model).double(), {torch.float32: 1e-5, torch.float16: 1e-2}[dtype]
    for size in ((1, 8, 15, 17), (3, 8, 14, 9), (2, 8, 40, 7)):
        x = torch.rand(size, dtype=dtype)
        expected = [output.detach() for output in truth(x.double())]
        for actual, one in zip(session.run(None, {'x': x.numpy()}), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(actual).double(), one, rtol=tolerance, atol=tolerance)


def test_our_operator_refuses_what_does_not_fit(tmp_path, library):
    onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    value = onnx.helper.make_tensor_value_info
    pairs = dict(stride=[1, 1], padding=[1, 1], dilation=[1, 1])
    node = onnx.helper.make_node('involution2d', ['x', 'kernel'], ['y'], domain='mmrednet', **pairs)
    values = [value(name, onnx.TensorProto.FLOAT, [None] * rank) for name, rank in (('x', 4), ('kernel', 6), ('y', 4))]
    domains = [onnx.helper.make_opsetid('', 20), onnx.helper.make_opsetid('mmrednet', 1)]
    graph = onnx.helper.make_graph([node], 'graph', values[:2], values[2:])
    path = tmp_path / 'node.onnx'
    onnx.save(onnx.helper.make_model(graph, opset_imports=domains, ir_version=10), path)
    options = runtime.SessionOptions()
    options.register_custom_ops_library(str(library))
    session = runtime.InferenceSession(path, options)
    x = torch.rand(2, 6, 5, 4)
    for kernel, words in (
        ((2, 3, 3, 3, 5, 3), 'height and width'),
        ((2, 4, 3, 3, 5, 4), 'a G that divides C'),
        ((1, 3, 3, 3, 5, 4), "the input's N"),
    ):
        with pytest.raises(Exception, match=words):
            session.run(None, {'x': x.numpy(), 'kernel': torch.rand(kernel).numpy()})
    kernel = torch.rand(2, 3, 3, 3, 5, 4)
    (actual,) = session.run(None, {'x': x.numpy(), 'kernel': kernel.numpy()})
    torch.testing.assert_close(torch.from_numpy(actual), involution2d(x, kernel, backend='reference'))


def test_no_product_waits_in_onnx_for_the_others(tmp_path):
    """ONNX Runtime computes the last nodes first. So a product is written before the sum that it is added to."""
    pytest.importorskip('onnxscript')
    onnx = pytest.importorskip('onnx')
    path = tmp_path / 'layer.onnx'
    torch.onnx.export(Involution(16, 3).eval(), (torch.rand(1, 16, 8, 8),), path, dynamo=True)
    nodes = onnx.load(path).graph.node
    made = {output: i for i, node in enumerate(nodes) for output in node.output}
    sums = [
        sorted((made[name], nodes[made[name]].op_type) for name in node.input)
        for node in nodes
        if node.op_type == 'Add'
    ]
    assert [[kind for _, kind in operands] for operands in sums] == [['Mul', 'Mul'], *[['Mul', 'Add']] * 7]


@pytest.mark.parametrize(
    ('kind', 'count'),
    (('classifier', 4), *(pytest.param(kind, 13, marks=pytest.mark.full) for kind in ('detector', 'segmentor'))),
)
def test_torch_export_keeps_the_operator_and_loads_elsewhere(tmp_path, kind, count):
    path = export(tmp_path, kind, 'torch-export')
    program = torch.export.load(path)
    targets = [str(node.target) for node in program.graph.nodes]
    # One in the stem, and in the trunk 3 in the classifier's two stages or 8 in four. The neck has 4.
    assert targets.count('mmrednet.fused_involution2d.default') == count
    images = torch.rand(3, 3, 61, 90)
    torch.save((images, program.module()(images)), tmp_path / 'expected.pt')
    run_python(
        f"""
import torch
import mmrednet.ops
images, expected = torch.load({str(tmp_path / 'expected.pt')!r})
torch.testing.assert_close(torch.export.load({str(path)!r}).module()(images), expected)
""",
        'import torch',
    )


def test_onnx_of_a_classifier(tmp_path, capsys):
    pytest.importorskip('onnxscript')
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    path = export(tmp_path, 'classifier', 'onnx')
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ['1x3x64x64', '2x3x65x67', '1x3x49x81']
    model = onnx.load(path)
    # ONNX Runtime 1.17 reads this.
    assert model.ir_version == 9
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [('', 20)]
    assert [output.name for output in model.graph.output] == ['logits']
    assert [dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim] == [
        'batch',
        '',
        'height',
        'width',
    ]


@pytest.mark.slow
@pytest.mark.parametrize('kind', ('detector', 'segmentor'))
def test_onnx_of_dense_models(tmp_path, kind):
    pytest.importorskip('onnxscript')
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    names = [output.name for output in onnx.load(export(tmp_path, kind, 'onnx')).graph.output]
    levels = [f'{name}_{i}' for name in ('cls_scores', 'bbox_preds') for i in range(4)]
    assert names == (levels if kind == 'detector' else ['logits'])


@pytest.mark.parametrize('spread', (0.3, 3.0))
def test_boxes_of_the_page_are_those_of_mmdet(spread):
    from mmengine.config import ConfigDict

    page = (ROOT / 'docs' / 'export.md').read_text()
    names = {}
    exec(page.partition('```python\n')[2].partition('```')[0], names)
    nms = dict(nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
    head = registry('mmdet').build(dict(type='RetinaHead', num_classes=3, in_channels=8, test_cfg=ConfigDict(nms)))
    size, generator = (200, 264), torch.Generator().manual_seed(0)
    maps = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (8, 16, 32, 64, 128)]
    scores, deltas = (
        [f * torch.randn(1, 9 * depth, *level, generator=generator) - shift for level in maps]
        for depth, f, shift in ((3, 1.5, 3), (4, spread, 0))
    )
    (expected,) = head.predict_by_feat(scores, deltas, batch_img_metas=[dict(img_shape=size)])
    actual = names['find_boxes']([output.numpy() for output in (*scores, *deltas)], size, classes=3)
    assert len(expected) == 100 and len(set(actual[2])) == 3
    assert actual[2].tolist() == expected.labels.tolist()
    for found, name in zip(actual[:2], ('bboxes', 'scores'), strict=True):
        torch.testing.assert_close(torch.from_numpy(found).float(), expected[name], rtol=1e-4, atol=1e-3)
    nothing = names['find_boxes']([output.numpy() for output in ([s - 99 for s in scores] + deltas)], size, classes=3)
    assert [len(found) for found in nothing] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize('name', ('onnx', 'torch-export'))
def test_float16(tmp_path, name):
    if name == 'onnx':
        pytest.importorskip('onnxscript')
        pytest.importorskip('onnxruntime')
    assert export(tmp_path, 'classifier', name, '--dtype', 'float16')


@pytest.mark.slow
def test_openvino(tmp_path):
    pytest.importorskip('onnxscript')
    pytest.importorskip('openvino')
    path = export(tmp_path, 'classifier', 'openvino')
    assert path.with_suffix('.bin').exists() and not path.with_suffix('.onnx').exists()


@pytest.mark.slow
def test_onnxruntime(tmp_path, library):
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    path = export(tmp_path, 'classifier', 'onnxruntime')
    assert path.exists() and path.with_suffix('.so').exists()


@pytest.mark.slow
def test_aotinductor_loads_elsewhere(tmp_path):
    path = export(tmp_path, 'classifier', 'aotinductor')
    images = torch.rand(3, 3, 61, 90)
    torch.save((images, torch._inductor.aoti_load_package(str(path))(images)), tmp_path / 'expected.pt')
    run_python(
        f"""
import torch
import mmrednet.ops
images, expected = torch.load({str(tmp_path / 'expected.pt')!r})
torch.testing.assert_close(torch._inductor.aoti_load_package({str(path)!r})(images), expected)
""",
        'import torch',
    )


def test_a_size_that_became_a_constant_is_found(tmp_path):
    """mmseg's Upsample takes ``int(size * factor)``, which a plain trace turns into a constant."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    from mmrednet.export import ExportableModel, compare
    from mmrednet.export.compare import TOLERANCE
    from mmrednet.export.model import example, trace_size

    init_default_scope('mmseg')
    config = Config.fromfile(write_config(tmp_path, 'segmentor'))
    network = ExportableModel(MODELS.build(config.model))
    with torch.no_grad():
        trace = torch.jit.trace(network, example(network, trace_size((64, 64))), check_trace=False)
    differences = [found.difference for found in compare(network, trace, (64, 64))]
    assert differences[0] > TOLERANCE[torch.float32] > differences[1]  # the latter has the size of the trace


class Flat(nn.Module):
    """Outputs that are nearly the same everywhere."""

    channels = 3

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, images):
        return (5 + self.factor * images.mean((1, 2)),)


def test_an_overflow_is_refused_though_pytorch_has_it_too():
    from mmrednet.export.compare import check

    network = Flat(1e9).half()  # a half cannot hold this number
    with pytest.raises(ValueError, match='the export is wrong'):
        check(network, network, (64, 64))


def test_rounding_is_a_large_share_of_a_small_range():
    from mmrednet.export.compare import check

    network = Flat(1e-4)
    found = check(network, network, (64, 64))
    assert len(found) == 3 and found[0].difference > 1e-3
    with pytest.raises(ValueError, match='the export is wrong'):
        check(network, Flat(2e-4), (64, 64))


@pytest.mark.parametrize(
    'wrong, words',
    (
        (lambda outputs: [output * 1.001 for output in outputs], 'the export is wrong for images of 1x3x64x64'),
        (lambda outputs: [output.view(7, 7) for output in outputs], 'the export does not run for images of 1x3x64x64'),
    ),
)
def test_a_wrong_export_leaves_the_old_file(tmp_path, monkeypatch, capsys, wrong, words):
    from mmrednet.export import FORMATS

    def load(path):
        run = torch_export.load(path)
        return lambda images: wrong(run(images))

    torch_export = FORMATS['torch-export']
    monkeypatch.setitem(FORMATS, 'torch-export', torch_export._replace(load=load))
    old = tmp_path / 'classifier.pt2'
    old.write_text('old')
    assert export(tmp_path, 'classifier', 'torch-export') is None
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ['classifier.pt2', 'classifier.py']
    assert old.read_text() == 'old'


def test_a_full_disk_leaves_the_old_file(tmp_path, capsys):
    with small_disk(tmp_path / 'disk', (1 << 20) + (1 << 16)) as disk:
        old = disk / 'classifier.pt2'
        old.write_bytes(bytes(1 << 20))
        assert export(disk, 'classifier', 'torch-export') is None
        assert f'{old} could not be written (No space left on device): make room' in capsys.readouterr().err
        assert sorted(path.name for path in disk.iterdir()) == ['classifier.pt2', 'classifier.py']
        assert old.read_bytes() == bytes(1 << 20)


@pytest.mark.parametrize('spoilt', (False, True))
def test_a_wrong_involution_in_a_network_without_a_checkpoint_is_found(tmp_path, monkeypatch, capsys, spoilt):
    """The constructor zeroes the last norm layer of each block, so that no involution of a block reaches the output."""
    from mmrednet.export import FORMATS

    def write(network, images, path):
        if spoilt:
            with torch.no_grad():
                network.model.backbone.layer2[0].conv2.last_convolution().weight.mul_(2)
        torch_export.write(network, images, path)

    torch_export = FORMATS['torch-export']
    monkeypatch.setitem(FORMATS, 'torch-export', torch_export._replace(write=write))
    monkeypatch.setitem(CONFIGS, 'classifier', f"backbone['zero_init_residual'] = True\n{CONFIGS['classifier']}")
    written = export(tmp_path, 'classifier', 'torch-export')
    assert (written is None) == spoilt == ('the export is wrong' in capsys.readouterr().err)


def test_images_of_other_channels_and_export_from_python(tmp_path):
    from mmrednet.export import ExportableModel, export_checked
    from mmrednet.export.model import example
    from mmrednet.toolboxes import build_model, read_config

    networks = []
    for channels in (1, 4):
        path = tmp_path / 'classifier.py'
        path.write_text(f"{BACKBONE}{CONFIGS['classifier']}model['backbone']['in_channels'] = {channels}\n")
        networks.append(ExportableModel(build_model(read_config(str(path)), str(path), None)))
    assert [example(network, (2, 5, 7)).shape for network in networks] == [(2, 1, 5, 7), (2, 4, 5, 7)]
    out = tmp_path / 'model.pt2'
    found = export_checked(networks[0], 'torch-export', out, (64, 64))
    assert [comparison.shape for comparison in found] == [(1, 1, 64, 64), (2, 1, 65, 67), (1, 1, 49, 81)]
    images = torch.rand(3, 1, 40, 40)
    torch.testing.assert_close(torch.export.load(out).module()(images), networks[0](images))


def test_a_classifier_without_a_single_head_is_refused():
    from mmrednet.export import ExportableModel

    classifier = dict(type='ImageClassifier', backbone=dict(type='mmrednet.RedNet', depth=26))
    model = registry('mmpretrain').build(classifier)
    with pytest.raises(ValueError, match='one head .* gives tuple'):
        ExportableModel(model)(torch.rand(1, 3, 32, 32))


DETR = """
default_scope = 'mmdet'
_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'
"""


@pytest.mark.parametrize(
    'text, options, words',
    (
        (CONFIGS['classifier'], ('onnx', 'm.pt2'), 'must end in .onnx'),
        (CONFIGS['classifier'], ('torch-export', 'nowhere/m.pt2'), 'there is no folder'),
        (CONFIGS['classifier'], ('onnx', 'm.onnx'), 'pip install onnxscript'),
        (CONFIGS['classifier'].replace('mmpretrain', 'mmocr'), ('torch-export', 'm.pt2'), 'is a config of mmocr'),
        (DETR, ('torch-export', 'm.pt2'), 'DETR cannot be exported: give a classifier'),
    ),
)
def test_refusals(tmp_path, monkeypatch, capsys, text, options, words):
    formats, compare = (import_module(f'mmrednet.export.{name}') for name in ('formats', 'compare'))
    monkeypatch.setattr(formats, 'find_spec', lambda name: None if name == 'onnxscript' else name)
    monkeypatch.setattr(compare, 'export', None)  # nothing is exported
    path = tmp_path / 'config.py'
    path.write_text(text if '_base_' in text else BACKBONE + text)
    assert main(['export', str(path), '--format', options[0], '--out', str(tmp_path / options[1])]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1
