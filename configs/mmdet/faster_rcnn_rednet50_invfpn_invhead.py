_base_ = './faster_rcnn_rednet50_invfpn.py'

model = dict(rpn_head=dict(type='mmrednet.InvolutionRPNHead'))
optim_wrapper = dict(clip_grad=dict(max_norm=5, norm_type=2))
