_base_ = './mask_rcnn_rednet50_fpn.py'

model = dict(neck=dict(type='mmrednet.InvolutionFPN'))

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=2000),
    _base_.param_scheduler[1],
]
