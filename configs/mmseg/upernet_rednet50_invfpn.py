# Beyond the paper: UPerNet's own FPN and its bottlenecks with 7x7 involutions where they have 3x3 convolutions.
_base_ = './upernet_rednet50.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    decode_head=dict(conv_cfg=dict(type='mmrednet.Involution', involution_kernel_size=7, norm_cfg=norm_cfg)),
)
