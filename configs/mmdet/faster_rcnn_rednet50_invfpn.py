_base_ = './faster_rcnn_rednet50_fpn.py'

model = dict(neck=dict(type='mmrednet.InvolutionFPN'))
