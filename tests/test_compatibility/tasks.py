"""A small task for each toolbox, on images that the demo's tool renders: the same but for the backbone."""

import torch
from helpers import registry
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from test_compatibility.rows import SHORT, Network

CHANNELS = [64, 128, 256, 512]
CLASSES = ('disc', 'triangle', 'star')
NORMALIZE = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
OUT_INDICES = (0, 1, 2, 3)


def _classifier(network: Network, backbone: dict) -> dict:
    images = dict(type='CustomDataset', serialize_data=False, metainfo=dict(classes=CLASSES))
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=48), dict(type='PackInputs')]
    return dict(
        model=dict(
            type='ImageClassifier',
            backbone=network.config(**{**SHORT, **backbone}),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead',
                num_classes=3,
                in_channels=128,
                loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
                topk=(1,),
            ),
        ),
        data_preprocessor=dict(num_classes=3, to_rgb=True, **NORMALIZE),
        datasets=[
            dict(**images, data_prefix=f'{network.data}/classification/{split}2017', pipeline=pipeline)
            for split in ('train', 'val')
        ],
        test_evaluator=dict(type='Accuracy', topk=(1,)),
        visualizer=dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
        tta_model=dict(type='AverageClsScoreTTA'),
        tta_pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                type='TestTimeAug',
                transforms=[
                    [dict(type='Resize', scale=48)],
                    [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
                    [dict(type='PackInputs')],
                ],
            ),
        ],
    )


def _detector(network: Network, backbone: dict) -> dict:
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
    meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
    resize = dict(type='Resize', scale=(64, 64), keep_ratio=True)
    pipeline = [*load, resize, dict(type='PackDetInputs', meta_keys=meta[:5])]
    tta = [[resize], [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)], [load[1]]]
    return dict(
        model=dict(
            type='RetinaNet',
            data_preprocessor=dict(type='DetDataPreprocessor', bgr_to_rgb=True, pad_size_divisor=32, **NORMALIZE),
            backbone=network.config(out_indices=OUT_INDICES, **backbone),
            neck=dict(
                type='FPN',
                in_channels=CHANNELS,
                out_channels=16,
                start_level=1,
                add_extra_convs='on_input',
                num_outs=5,
            ),
            bbox_head=dict(
                type='RetinaHead',
                num_classes=3,
                in_channels=16,
                stacked_convs=1,
                feat_channels=16,
                anchor_generator=dict(
                    type='AnchorGenerator',
                    octave_base_scale=4,
                    scales_per_octave=3,
                    ratios=[0.5, 1.0, 2.0],
                    strides=[8, 16, 32, 64, 128],
                ),
                bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
                loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
                loss_bbox=dict(type='L1Loss', loss_weight=1.0),
            ),
            train_cfg=dict(
                assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
                sampler=dict(type='PseudoSampler'),
                allowed_border=-1,
                pos_weight=-1,
                debug=False,
            ),
            test_cfg=dict(
                nms_pre=100,
                min_bbox_size=0,
                score_thr=0.0,
                nms=dict(type='nms', iou_threshold=0.5),
                max_per_img=20,
            ),
        ),
        datasets=[
            dict(
                type='CocoDataset',
                serialize_data=False,
                metainfo=dict(classes=CLASSES),
                data_root=f'{network.data}/',
                ann_file=f'annotations/instances_{split}2017.json',
                data_prefix=dict(img=f'{split}2017/'),
                pipeline=pipeline,
                test_mode=split == 'val',
            )
            for split in ('train', 'val')
        ],
        test_evaluator=dict(
            type='CocoMetric', ann_file=f'{network.data}/annotations/instances_val2017.json', metric='bbox'
        ),
        visualizer=dict(type='DetLocalVisualizer', name='visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        tta_model=dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=20)),
        tta_pipeline=[
            load[0],
            dict(type='TestTimeAug', transforms=[*tta, [dict(type='PackDetInputs', meta_keys=meta)]]),
        ],
    )


def _segmentor(network: Network, backbone: dict) -> dict:
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    pack = dict(type='PackSegInputs')
    preprocessor = dict(type='SegDataPreProcessor', bgr_to_rgb=True, size=(64, 64), **NORMALIZE)
    return dict(
        data_preprocessor=preprocessor,
        model=dict(
            type='EncoderDecoder',
            data_preprocessor=preprocessor,
            pretrained=None,
            backbone=network.config(out_indices=OUT_INDICES, **backbone),
            decode_head=dict(
                type='FCNHead',
                in_channels=512,
                in_index=3,
                channels=16,
                num_convs=1,
                num_classes=4,
                norm_cfg=dict(type='BN'),
                align_corners=False,
                loss_decode=dict(type='CrossEntropyLoss', loss_weight=1.0),
            ),
            train_cfg=dict(),
            test_cfg=dict(mode='whole'),
        ),
        datasets=[
            dict(
                type='BaseSegDataset',
                serialize_data=False,
                metainfo=dict(
                    classes=('background', *CLASSES),
                    palette=[(0, 0, 0), (230, 80, 60), (60, 160, 230), (250, 200, 40)],
                ),
                data_root=f'{network.data}/',
                data_prefix=dict(img_path=f'{split}2017', seg_map_path=f'segmentation/{split}2017'),
                pipeline=[*load, pack],
            )
            for split in ('train', 'val')
        ],
        test_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']),
        visualizer=dict(type='SegLocalVisualizer', name='visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        tta_model=dict(type='SegTTAModel'),
        tta_pipeline=[load[0], dict(type='TestTimeAug', transforms=[flips, [load[1]], [pack]])],
    )


TASKS = {'mmpretrain': _classifier, 'mmdet': _detector, 'mmseg': _segmentor}


def task(network: Network, scope: str, backbone: dict | None = None, **changes) -> Config:
    """Returns a config of two steps of training and a test.

    Args:
        network (Network): The backbone's type, a folder for what is written, the data.
        scope (str): The toolbox.
        backbone (dict, optional): Arguments of the backbone. Defaults to None.
        **changes: What :meth:`Config.merge_from_dict` merges; a dot stands in names as two underscores.
    """
    parts = TASKS[scope](network, backbone or {})
    train, val = parts.pop('datasets')
    loader = dict(batch_size=2, num_workers=0, persistent_workers=False)
    test = dict(**loader, dataset=val, sampler=dict(type='DefaultSampler', shuffle=False))
    config = Config(
        dict(
            default_scope=scope,
            # Where functions and tools of the toolboxes look for it.
            test_pipeline=val['pipeline'],
            train_dataloader=dict(**loader, dataset=train, sampler=dict(type='InfiniteSampler', shuffle=True)),
            val_dataloader=test,
            test_dataloader=test,
            val_evaluator=parts['test_evaluator'],
            train_cfg=dict(by_epoch=False, max_iters=2, val_interval=2),
            val_cfg=dict(),
            test_cfg=dict(),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, weight_decay=0.1)),
            param_scheduler=[dict(type='MultiStepLR', by_epoch=False, milestones=[100])],
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                param_scheduler=dict(type='ParamSchedulerHook'),
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
            ),
            randomness=dict(seed=0),
            work_dir=str(network.folder),
            log_level='ERROR',
            env_cfg=dict(dist_cfg=dict(backend='gloo')),
            **parts,
        )
    )
    config.merge_from_dict({name.replace('__', '.'): value for name, value in changes.items()})
    return config


_count = iter(range(10**6))


def runner(config: Config):
    """Builds mmengine's runner, under a name that no other had."""
    config = config.copy()
    config.experiment_name = f'compatibility{next(_count)}'
    init_default_scope(config.default_scope)
    return Runner.from_cfg(config)


def save_start(network: Network, scope: str) -> str:
    """Writes a checkpoint of a model with random weights, as mmengine does, and returns its path."""
    config = task(network, scope)
    models = registry(scope)
    torch.manual_seed(0)
    preprocessor = dict(data_preprocessor=config.data_preprocessor) if 'data_preprocessor' in config else {}
    model = models.build({**config.model, **preprocessor})
    model.init_weights()
    path = network.folder / f'{scope}.pth'
    classes = config.val_dataloader.dataset.metainfo
    meta = dict(cfg=config.pretty_text, dataset_meta=dict(classes), experiment_name='start', epoch=0, iter=0)
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return str(path)
