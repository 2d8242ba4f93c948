_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/rednet50.py']

model = dict(backbone=dict(_delete_=True, frozen_stages=1, norm_eval=True, **_base_.rednet50))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=2000),
    _base_.param_scheduler[1],
]
