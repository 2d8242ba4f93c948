# The COCO config at the scale of the demo: images of 96 pixels that tools/make_demo_data.py renders, three classes, and
# a schedule that goes from random weights to useful detections in minutes on two CPU cores.
_base_ = './faster_rcnn_rednet50_invfpn.py'

data_root = 'data/demo/'
metainfo = dict(classes=('disc', 'triangle', 'star'))

model = dict(
    # Anchors of 16 to 256 pixels.
    rpn_head=dict(anchor_generator=dict(scales=[4])),
    roi_head=dict(
        # On a CPU, torchvision's RoIAlign takes a fraction of mmcv's time, which was a third of a training step.
        bbox_roi_extractor=dict(roi_layer=dict(use_torchvision=True)),
        bbox_head=dict(num_classes=3, fc_out_channels=256),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=200, max_per_img=100), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=4, val_interval=4)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=6e-4, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=10, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, begin=0, end=4, eta_min=1e-6),
]
custom_hooks = [dict(type='mmrednet.ProgressBarHook')]
default_hooks = dict(logger=dict(interval=80), checkpoint=dict(interval=1, max_keep_ckpts=1))
