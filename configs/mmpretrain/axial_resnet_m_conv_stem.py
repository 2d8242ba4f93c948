_base_ = './rednet50.py'

model = dict(
    backbone=dict(_delete_=True, type='mmrednet.AxialResNet', width=0.75, stem='conv'),
    head=dict(in_channels=1536),
)
