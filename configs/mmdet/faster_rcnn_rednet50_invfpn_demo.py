# The COCO config for the data of the demo, the three classes that tools/make_demo_data.py renders. Training starts from
# random weights and reaches useful detections in minutes on two CPU cores.
_base_ = './faster_rcnn_rednet50_invfpn.py'

data_root = 'data/demo/'
metainfo = dict(classes=('disc', 'triangle', 'star'))

channels = 128  # of the FPN, half of the COCO config's: a training step takes three quarters of the time
model = dict(
    # Training starts from random weights, so no stage is frozen.
    backbone=dict(_delete_=True, type='mmrednet.RedNet', depth=50, stem_kernel_size=7, out_indices=(0, 1, 2, 3)),
    neck=dict(out_channels=channels),
    # Anchors of 20, 40, 80, 160 and 320 pixels: the objects are 18 to 38 pixels wide.
    rpn_head=dict(in_channels=channels, feat_channels=channels, anchor_generator=dict(scales=[5])),
    roi_head=dict(
        # One sample in each bin is enough for maps of 16x16 pixels.
        bbox_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=channels, num_classes=3, fc_out_channels=256),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=200, max_per_img=100), rcnn=dict(sampler=dict(num=32, pos_fraction=0.5))),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=8,
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

max_epochs = 4
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=10, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, begin=0, end=max_epochs, eta_min=1e-6),
]
custom_hooks = [dict(type='mmrednet.ProgressBarHook')]
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=1, max_keep_ckpts=1))
