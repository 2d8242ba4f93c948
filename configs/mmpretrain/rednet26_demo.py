# RedNet-26 at the scale of the demo: the objects that tools/make_demo_data.py cuts out of its scenes, three classes.
_base_ = './rednet26.py'

data_root = 'data/demo/classification'
model = dict(head=dict(num_classes=3, topk=(1,)))
data_preprocessor = dict(num_classes=3)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=48),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=48),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    dataset=dict(_delete_=True, type='CustomDataset', data_prefix=data_root + '/train2017', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=1,
    dataset=dict(_delete_=True, type='CustomDataset', data_prefix=data_root + '/val2017', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=8, val_interval=8)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=6e-4, weight_decay=0.05, fused=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, T_max=8, begin=0, end=8, eta_min=0),
]
custom_hooks = [dict(type='mmrednet.ProgressBarHook')]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=1, max_keep_ckpts=1))
