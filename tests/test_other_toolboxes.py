"""The configs in docs/other_toolboxes.md and the code in docs/layer.md, each where its toolbox is installed."""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import ROOT, registry, run_python
from mmengine.config import Config

from mmrednet.layers import Involution
from mmrednet.models.rednet import RedNet
from mmrednet.toolboxes import OTHER_INFERENCERS

pytestmark = pytest.mark.slow
BLOCKS = re.findall(r'^```python\n(_base_ = .*?)^```', (ROOT / 'docs/other_toolboxes.md').read_text(), re.S | re.M)
# Python code that tests/test_docs.py does not run, since it needs packages that the set-up does not install.
LIBRARIES = re.findall(r'^```py\n(.*?)^```', (ROOT / 'docs/layer.md').read_text(), re.S | re.M)
BACKBONE = """
_base_ = 'mmaction::recognition{}'
model = dict(backbone=dict(_delete_=True, type='mmrednet.RedNet', depth=50, in_channels={}){})
"""
# A head of mmaction2 expects the number of channels of the ResNet that the zoo's config has.
RECOGNIZERS = (
    BACKBONE.format('/trn/trn_imagenet-pretrained-r50_8xb16-1x1x8-50e_sthv1-rgb.py', 3, ''),
    BACKBONE.format('/tsm/tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_kinetics400-rgb.py', 3, ''),
    BACKBONE.format(
        '_audio/resnet/tsn_r18_8xb320-64x1x1-100e_kinetics400-audio-feature.py', 1, ', cls_head=dict(in_channels=2048)'
    ),
)
SIDE = 64


def read(block, folder):
    """Returns the config of a block, without checkpoints, which would be downloaded."""
    if path := re.match(r"\s*_base_ = './configs/(.*?)'", block):  # mmyolo's bases are named by path
        zoo = Path(find_spec('mmyolo').origin).parent / '.mim' / 'configs'
        block = block.replace(f'./configs/{path[1]}', str(zoo / path[1]))
    file = folder / 'config.py'
    file.write_text(block)
    config = Config.fromfile(file)
    drop_checkpoints(config.model)
    return config


def drop_checkpoints(node):
    for key, value in node.items():
        if key == 'pretrained' or (key == 'init_cfg' and 'checkpoint' in value):
            node[key] = None
        elif isinstance(value, dict):
            drop_checkpoints(value)


def boxes(scope, side=SIDE):
    if scope == 'mmrotate':
        from mmrotate.testing import demo_mm_inputs

        return demo_mm_inputs(2, (3, side, side), num_items=[2, 2], use_box_type=True)
    from mmdet.testing import demo_mm_inputs

    packed = demo_mm_inputs(2, (3, side, side), num_items=[2, 2], with_mask=scope == 'mmocr')
    for sample in packed['data_samples']:
        sample.gt_instances.labels[:] = 0
    return packed


def poses(model):
    from mmpose.testing import get_packed_inputs

    return get_packed_inputs(2)


def clips(model):
    from mmaction.structures import ActionDataSample

    audio = type(model).__name__ == 'RecognizerAudio'
    inputs = torch.rand(1, 1, SIDE, SIDE) if audio else torch.randint(0, 256, (8, 3, SIDE, SIDE), dtype=torch.uint8)
    return {'inputs': [inputs] * 2, 'data_samples': [ActionDataSample().set_gt_label(1) for _ in range(2)]}


def texts(model):
    if type(model).__name__ == 'MMDetWrapper':
        return boxes('mmocr')
    from mmengine.structures import InstanceData
    from mmocr.structures import TextDetDataSample

    polygon = torch.tensor([8.0, 8, 56, 8, 56, 40, 8, 40]).numpy()
    sample = TextDetDataSample(metainfo=dict(img_shape=(SIDE, SIDE), ori_shape=(SIDE, SIDE), scale_factor=(1, 1)))
    sample.gt_instances = InstanceData(polygons=[polygon], ignored=torch.tensor([False]))
    return {'inputs': [torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8)] * 2, 'data_samples': [sample] * 2}


def photos_of_rooms(model):
    from mmdet3d.structures import Det3DDataSample

    packed = boxes('mmdet3d')
    samples = []
    for sample in packed['data_samples']:
        samples.append(Det3DDataSample(metainfo=sample.metainfo))
        samples[-1].gt_instances = sample.gt_instances
    return {'inputs': {'img': packed['inputs']}, 'data_samples': samples}


DATA = {'mmpose': poses, 'mmaction': clips, 'mmocr': texts, 'mmdet3d': photos_of_rooms}


@pytest.mark.parametrize('block', (*BLOCKS, *RECOGNIZERS), ids=lambda block: re.search(r'([^/]*)\.py', block)[1])
def test_learns_and_predicts(block, tmp_path):
    scope = re.search(r"'(mm\w+)::", block)[1] if '::' in block else 'mmyolo'
    pytest.importorskip(scope)
    torch.manual_seed(0)
    model = registry(scope).build(read(block, tmp_path).model)
    if 'mmrednet.RedNet' in block:
        assert any(isinstance(module, RedNet) for module in model.modules())
    model.init_weights()
    packed = DATA.get(scope, lambda model: boxes(scope, 128))(model)
    data = model.data_preprocessor(packed, training=True)
    losses = model(**data, mode='loss')
    model.parse_losses(losses)[0].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)
    model.eval()
    with torch.no_grad():
        predictions = model(**model.data_preprocessor(packed, training=False), mode='predict')
    assert len(predictions) == 2


POSE = BLOCKS[0].replace("init_cfg=dict(checkpoint='mmrednet://rednet50'),", '')


def test_an_inferencer_reads_a_checkpoint_after_import_mmrednet(tmp_path):
    pytest.importorskip('mmpose')
    from mmengine.logging import MessageHub

    (tmp_path / 'pose.py').write_text(POSE)
    model = registry('mmpose').build(read(POSE, tmp_path).model)
    hub = MessageHub('checkpoint')
    hub.update_scalar('loss', 1.0)
    torch.save(dict(state_dict=model.state_dict(), message_hub=hub.state_dict(), meta={}), tmp_path / 'pose.pth')
    run_python(f"""
import mmrednet, numpy
from mmpose.apis import Pose2DInferencer
infer = Pose2DInferencer('{tmp_path}/pose.py', '{tmp_path}/pose.pth', device='cpu', det_model='whole_image')
person = next(infer(numpy.zeros((256, 192, 3), numpy.uint8)))['predictions'][0][0]
assert len(person['keypoints']) == 17
""")


def test_weights_of_a_resnet_v1d_are_refused_as_a_whole(tmp_path):
    pytest.importorskip('mmpose')
    from mmengine.runner import load_checkpoint

    model = registry('mmpose').build(read(POSE, tmp_path).model)
    other = registry('mmpose').build(read(POSE.replace('res50', 'resnetv1d50').split('model =')[0], tmp_path).model)
    torch.save(dict(state_dict=other.state_dict()), tmp_path / 'v1d.pth')
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    with pytest.raises(ValueError, match='cannot load the weights of a ResNet'):
        load_checkpoint(model, str(tmp_path / 'v1d.pth'), map_location='cpu')
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize('scope', OTHER_INFERENCERS)
def test_the_inferencer_that_errors_name_exists(scope):
    pytest.importorskip(scope)
    module, _, name = re.match(r'[\w.]+', OTHER_INFERENCERS[scope])[0].rpartition('.')
    assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize(
    ('library', 'block'),
    [
        (library, next(block for block in LIBRARIES if library in block))
        for library in ('segmentation_models_pytorch', 'timm', 'ultralytics')
    ],
)
def test_a_network_of_another_library_learns(library, block, tmp_path, monkeypatch):
    monkeypatch.setenv('YOLO_CONFIG_DIR', str(tmp_path))
    pytest.importorskip(library)
    names = {}
    exec(compile(block, library, 'exec'), names)
    network = names['network'].train()
    outputs = network(torch.rand(2, 3, 64, 64))
    outputs = outputs.values() if isinstance(outputs, dict) else [outputs]
    sum(output.sum() for output in outputs if isinstance(output, torch.Tensor)).backward()
    layers = [module for module in network.modules() if isinstance(module, Involution)]
    assert layers
    assert all(p.grad is not None and p.grad.isfinite().all() for layer in layers for p in layer.parameters())
