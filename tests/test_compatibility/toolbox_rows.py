"""Features of the toolboxes, called in this process."""

import numpy as np
import torch
from helpers import registry
from mmengine.config import Config
from mmengine.registry import init_default_scope
from test_compatibility.rows import Network, rows_of
from test_compatibility.tasks import runner, save_start, task

row = rows_of('Training and testing in each toolbox', tier='full')


def files(network, scope):
    """Returns the paths of a config and a checkpoint."""
    checkpoint = save_start(network, scope)
    path = network.folder / f'{scope}.py'
    task(network, scope).dump(path)
    return str(path), checkpoint


def picture():
    return np.random.default_rng(0).integers(0, 256, (65, 90, 3), np.uint8)


def trains_and_tests(network, scope):
    checkpoint = save_start(network, scope)
    run = runner(task(network, scope, load_from=checkpoint))
    run.train()
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())
    assert runner(task(network, scope, load_from=str(network.folder / 'iter_2.pth'))).test()


@row
def mmdet_trains(network: Network):
    """mmdet: a RetinaNet with an FPN"""
    trains_and_tests(network, 'mmdet')


@row
def mmseg_trains(network: Network):
    """mmseg: an FCN"""
    trains_and_tests(network, 'mmseg')


def augmented(network, scope):
    config = task(network, scope, load_from=save_start(network, scope))
    # The toolboxes' tools/test.py does this for --tta.
    config.model = {**config.tta_model, 'module': config.model}
    loader = config.test_dataloader.dataset
    loader.pipeline = config.tta_pipeline
    assert runner(config).test()


@row
def mmpretrain_tta(network: Network):
    """mmpretrain: test-time augmentation, `AverageClsScoreTTA`"""
    augmented(network, 'mmpretrain')


@row
def mmdet_tta(network: Network):
    """mmdet: test-time augmentation, `DetTTAModel`"""
    augmented(network, 'mmdet')


@row
def mmseg_tta(network: Network):
    """mmseg: test-time augmentation, `SegTTAModel`"""
    augmented(network, 'mmseg')


row = rows_of('Inferencers and functions', tier='full')


@row
def mmpretrain_inferencer(network: Network):
    """`ImageClassificationInferencer(config, pretrained=checkpoint)`"""
    from mmpretrain import ImageClassificationInferencer

    config, checkpoint = files(network, 'mmpretrain')
    inferencer = ImageClassificationInferencer(config, pretrained=checkpoint, device='cpu')
    assert len(inferencer(picture(), batch_size=1)[0]['pred_scores']) == 3


@row
def mmpretrain_inferencer_alone(network: Network):
    """`ImageClassificationInferencer` with the checkpoint's path alone"""
    from mmpretrain import ImageClassificationInferencer

    ImageClassificationInferencer(files(network, 'mmpretrain')[1], device='cpu')(picture())


@row
def mmpretrain_model(network: Network):
    """`mmpretrain.get_model(config, pretrained=checkpoint)` and `extract_feat`"""
    from mmpretrain import get_model

    config, checkpoint = files(network, 'mmpretrain')
    model = get_model(config, pretrained=checkpoint)
    assert model.extract_feat(network.image())[0].shape == (2, 128)
    assert model.extract_feat(network.image(), stage='backbone')[0].shape == (2, 128, 8, 8)


@row
def mmpretrain_functions(network: Network):
    """`mmpretrain.inference_model(model, image)` with your own model"""
    from mmpretrain import get_model, inference_model

    config, checkpoint = files(network, 'mmpretrain')
    inference_model(get_model(config, pretrained=checkpoint), picture())


@row
def mmpretrain_features(network: Network):
    """`mmpretrain.FeatureExtractor`"""
    from mmpretrain import FeatureExtractor

    config, checkpoint = files(network, 'mmpretrain')
    assert FeatureExtractor(config, pretrained=checkpoint, device='cpu')(picture())[0][0].shape == (128,)


@row
def mmpretrain_backbone(network: Network):
    """`mmpretrain.get_model(config, ..., backbone=dict(out_indices=...))`: arguments of the backbone"""
    from mmpretrain import get_model

    config, checkpoint = files(network, 'mmpretrain')
    model = get_model(config, pretrained=checkpoint, backbone=dict(out_indices=(0, 1)), neck=None, head=None)
    assert [feature.shape[1] for feature in model.extract_feat(network.image())] == [64, 128]


@row
def mmdet_inferencer(network: Network):
    """`DetInferencer(config, checkpoint)`"""
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(*files(network, 'mmdet'), device='cpu', show_progress=False)
    assert inferencer(picture(), no_save_vis=True)['predictions'][0]['labels']


@row
def mmdet_inferencer_alone(network: Network):
    """`DetInferencer(weights=checkpoint)`: the config comes from the checkpoint"""
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(weights=files(network, 'mmdet')[1], device='cpu', show_progress=False)
    inferencer(picture(), no_save_vis=True)


@row
def mmdet_inferencer_scope(network: Network):
    """`DetInferencer` after another toolbox's scope was set"""
    init_default_scope('mmseg')
    mmdet_inferencer(network)


@row
def mmdet_functions(network: Network):
    """mmdet's `init_detector` and `inference_detector`"""
    from mmdet.apis import inference_detector, init_detector

    model = init_detector(*files(network, 'mmdet'), device='cpu')
    assert len(inference_detector(model, [picture(), picture()])) == 2


@row
def mmseg_inferencer(network: Network):
    """`MMSegInferencer(config, checkpoint)`"""
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(*files(network, 'mmseg'), device='cpu')
    assert inferencer(picture(), show=False)['predictions'].shape == (65, 90)


@row
def mmseg_inferencer_alone(network: Network):
    """`MMSegInferencer(None, checkpoint)`: the config comes from the checkpoint"""
    from mmseg.apis import MMSegInferencer

    MMSegInferencer(None, files(network, 'mmseg')[1], device='cpu')(picture(), show=False)


@row
def mmseg_inferencer_scope(network: Network):
    """`MMSegInferencer` after another toolbox's scope was set"""
    init_default_scope('mmdet')
    mmseg_inferencer(network)


@row
def mmseg_functions(network: Network):
    """mmseg's `init_model` and `inference_model`"""
    from mmseg.apis import inference_model, init_model

    model = init_model(*files(network, 'mmseg'), device='cpu')
    assert inference_model(model, picture()).pred_sem_seg.data.shape == (1, 65, 90)


row = rows_of('As part of another model')


@row
def distills(network: Network):
    """mmdet: as a teacher for distillation (`KnowledgeDistillationSingleStageDetector`)"""
    config, checkpoint = files(network, 'mmdet')
    init_default_scope('mmdet')
    model = Config.fromfile(config).model
    head = dict(
        model.bbox_head,
        type='LDHead',
        reg_max=4,
        norm_cfg=dict(type='GN', num_groups=4),
        loss_ld=dict(type='KnowledgeDistillationKLDivLoss', loss_weight=0.25, T=10),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_dfl=dict(type='DistributionFocalLoss', loss_weight=0.25),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        anchor_generator=dict(
            type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[8, 16, 32, 64, 128]
        ),
    )
    del head['bbox_coder']
    teacher = network.folder / 'teacher.py'
    gfl = {**model, 'type': 'GFL', 'bbox_head': {**head, 'type': 'GFLHead'}}
    gfl['bbox_head'].pop('loss_ld')
    assigner = dict(train_cfg=dict(assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1))
    Config(dict(model={**gfl, **assigner}, default_scope='mmdet')).dump(teacher)
    built = registry('mmdet').build(
        {
            **model,
            **assigner,
            'type': 'KnowledgeDistillationSingleStageDetector',
            'teacher_config': str(teacher),
            'bbox_head': head,
        }
    )
    built.train()
    assert not built.teacher_model.training and built.training


@row
def semi_supervised(network: Network):
    """mmdet: a mean teacher (`SemiBaseDetector`), whose teacher is frozen"""
    model = task(network, 'mmdet').model
    preprocessor = dict(type='MultiBranchDataPreprocessor', data_preprocessor=model.pop('data_preprocessor'))
    built = registry('mmdet').build(
        dict(
            type='SemiBaseDetector',
            detector=model,
            data_preprocessor=preprocessor,
            semi_train_cfg=dict(freeze_teacher=True, sup_weight=1.0, unsup_weight=1.0),
            semi_test_cfg=dict(predict_on='teacher'),
        )
    )
    built.train()
    assert not any(parameter.requires_grad for parameter in built.teacher.parameters())
    assert all(parameter.requires_grad for parameter in built.student.parameters())


@row
def self_supervised(network: Network):
    """mmpretrain: self-supervised training (`MoCo`), whose momentum encoder is a copy of the backbone"""
    model = registry('mmpretrain').build(
        dict(
            type='MoCo',
            queue_len=16,
            feat_dim=8,
            momentum=0.001,
            data_preprocessor=dict(type='SelfSupDataPreprocessor', mean=(0, 0, 0), std=(1, 1, 1)),
            backbone=network.config(),
            neck=dict(type='MoCoV2Neck', in_channels=512, hid_channels=16, out_channels=8, with_avg_pool=True),
            head=dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.2),
        )
    )
    from mmpretrain.structures import DataSample

    losses = model.loss([network.image(), network.image()], [DataSample(), DataSample()])
    losses['loss'].backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    assert torch.isfinite(losses['loss'])


@row
def last_stage(network: Network):
    """mmdet: only the last stage with frozen BatchNorm, as in DETR, and a `ChannelMapper`"""
    model = network.build(
        scope='mmdet', out_indices=(3,), norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True
    )
    (feature,) = model(network.image())
    init_default_scope('mmdet')
    neck = registry('mmdet').build(
        dict(type='ChannelMapper', in_channels=[512], kernel_size=1, out_channels=16, act_cfg=None, num_outs=1)
    )
    assert neck([feature])[0].shape == (2, 16, 2, 2)


@row
def dilated(network: Network):
    """mmseg: dilated stages (`strides=(1, 2, 1, 1)`, `dilations=(1, 1, 2, 4)`, `contract_dilation=True`)"""
    model = network.build(
        scope='mmseg', strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True, out_indices=(2, 3)
    )
    assert [out.shape[1:] for out in model(network.image())] == [(256, 8, 8), (512, 8, 8)]


@row
def channels(network: Network):
    """`in_channels=4`"""
    assert network.build(in_channels=4)(network.image(1, 4, 64, 64))[0].shape == (1, 512, 2, 2)


@row
def sizes(network: Network):
    """A smaller or larger image than in training: 32x32, 65x33 and 7x200"""
    model = network.build()
    for size in ((32, 32), (65, 33), (7, 200)):
        out = model(network.image(1, 3, *size))[0]
        assert out.shape[2:] == tuple(-(-length // 32) for length in size)
