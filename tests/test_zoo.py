"""tests/zoo.py on a sample of the zoos: where ResNet works, RedNet works."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT

TOOL = ROOT / 'tests' / 'zoo.py'
# ResNet is not in model.backbone, is no ResNet-50, or has a use that test_configs.py does not try.
SAMPLE = [
    'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py',
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'mmdet::ld/ld_r18-gflv1-r101_fpn_1x_coco.py',
    'mmdet::masktrack_rcnn/masktrack-rcnn_mask-rcnn_r50_fpn_8xb1-12e_youtubevis2019.py',
    'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
    'mmdet::solov2/solov2-light_r50-dcn_fpn_ms-3x_coco.py',
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_isaid-896x896.py',
    'mmseg::icnet/icnet_r18-d8_4xb2-80k_cityscapes-832x832.py',
    'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
    'mmpretrain::arcface/resnet50-arcface_8xb32_inshop.py',
    'mmpretrain::byol/byol_resnet50_16xb256-coslr-200e_in1k.py',
    'mmpretrain::mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py',
    'mmpretrain::swav/swav_resnet50_8xb32-mcrop-coslr-200e_in1k-224px-96px.py',
    'mmpretrain::wrn/wide-resnet50_8xb32_in1k.py',
]


def run_tool(out, *arguments):
    """Returns the tool's records and what it printed."""
    command = [sys.executable, TOOL, '--out', out, *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {record['configs'][0]: record for record in map(json.loads, out.read_text().splitlines())}, printed


pytestmark = pytest.mark.full


@pytest.fixture(scope='module')
def records(tmp_path_factory):
    return run_tool(tmp_path_factory.mktemp('zoo') / 'results.jsonl', *SAMPLE)[0]


@pytest.mark.parametrize('config', SAMPLE)
def test_works_in_the_place_of_resnet(records, config):
    assert records[config]['RedNet'] == 'works'


def test_says_what_the_entry_leaves_out(records):
    assert records['mmdet::solov2/solov2-light_r50-dcn_fpn_ms-3x_coco.py']['left out'] == [
        'dcn',
        'stage_with_dcn',
        'style',
    ]


def test_a_hang_costs_one_model_and_what_is_known_is_not_tried_again(tmp_path):
    out = tmp_path / 'results.jsonl'
    known = {'configs': ['mmdet::known.py'], 'RedNet': 'works', 'left out': []}
    out.write_text(json.dumps(known) + '\n')
    records, printed = run_tool(out, '--seconds', '0', 'mmdet::known.py', SAMPLE[0])
    assert records == {
        'mmdet::known.py': known,
        SAMPLE[0]: {
            'configs': [SAMPLE[0]],
            'ResNet': 'stopped after 0 s',
            'RedNet': 'stopped after 0 s',
            'left out': [],
        },
    }
    assert f'| `{SAMPLE[0]}` |' in printed and 'known.py' not in printed
