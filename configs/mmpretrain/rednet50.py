_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    'mmpretrain::_base_/datasets/imagenet_bs64.py',
    'mmpretrain::_base_/schedules/imagenet_bs2048.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(_delete_=True, type='mmrednet.RedNet', depth=50),
    head=dict(loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1)),
)
# The learning rate is for 32 GPUs with 64 images each. `--auto-scale-lr` scales it to other numbers of images.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.25, by_epoch=False, begin=0, end=3130),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=130, begin=0, end=130, eta_min=0),
]
train_cfg = dict(max_epochs=130)
runner_type = 'mmrednet.Runner'
# Inferencers read checkpoints before they build the model. This import registers the types in them as safe.
custom_imports = dict(imports=['mmrednet.registry'])
