# The Cityscapes config for the data of the demo: background and the three classes that tools/make_demo_data.py renders.
_base_ = './semantic_fpn_rednet50_invfpn.py'

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    # Training starts from random weights.
    backbone=dict(
        _delete_=True,
        type='mmrednet.RedNet',
        depth=50,
        stem_kernel_size=7,
        out_indices=(0, 1, 2, 3),
        norm_cfg=norm_cfg,
    ),
    neck=dict(involution_cfg=dict(norm_cfg=norm_cfg)),
    # Most pixels are background, so its loss has a smaller weight.
    decode_head=dict(num_classes=4, norm_cfg=norm_cfg, loss_decode=dict(class_weight=[0.2, 1, 1, 1])),
)

dataset_type = 'BaseSegDataset'
data_root = 'data/demo/'
metainfo = dict(
    classes=('background', 'disc', 'triangle', 'star'),
    palette=[(0, 0, 0), (230, 80, 60), (60, 160, 230), (250, 200, 40)],
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(img_path='train2017', seg_map_path='segmentation/train2017'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(img_path='val2017', seg_map_path='segmentation/val2017'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

max_iters = 400
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=10, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', eta_min=1e-6, power=0.9, begin=0, end=max_iters, by_epoch=False),
]
custom_hooks = [dict(type='mmrednet.ProgressBarHook')]
default_hooks = dict(
    logger=dict(interval=50), checkpoint=dict(interval=100, max_keep_ckpts=1), visualization=dict(interval=1)
)
