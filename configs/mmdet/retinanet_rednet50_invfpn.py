_base_ = './retinanet_rednet50_fpn.py'

model = dict(neck=dict(type='mmrednet.InvolutionFPN'))
optim_wrapper = dict(clip_grad=dict(max_norm=40, norm_type=2))
