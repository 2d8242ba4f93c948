_base_ = './semantic_fpn_rednet50_fpn.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(neck=dict(type='mmrednet.InvolutionFPN', involution_cfg=dict(norm_cfg=norm_cfg)))
