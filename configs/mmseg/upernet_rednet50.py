_base_ = ['../_base_/rednet50.py', 'mmseg::upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py']

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(pretrained=None, backbone=dict(_delete_=True, norm_cfg=norm_cfg, **_base_.rednet50))
# mmseg's test tool ignores runner_type and uses mmengine's runner, which does not have this hook.
default_hooks = dict(load_checkpoint=dict(type='mmrednet.LoadCheckpointHook'))
