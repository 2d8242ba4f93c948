_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '../_base_/rednet50.py']

model = dict(backbone=dict(_delete_=True, frozen_stages=1, norm_eval=True, **_base_.rednet50))
