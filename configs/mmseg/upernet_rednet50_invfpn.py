# Not in the paper: 7x7 involutions replace the 3x3 convolutions of UPerNet's own FPN and its bottlenecks.
_base_ = './upernet_rednet50.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    decode_head=dict(conv_cfg=dict(type='mmrednet.Involution', involution_kernel_size=7, norm_cfg=norm_cfg)),
)
