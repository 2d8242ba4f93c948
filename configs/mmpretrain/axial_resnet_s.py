_base_ = './rednet50.py'

model = dict(
    backbone=dict(_delete_=True, type='mmrednet.AxialResNet', width=0.5, stem='attention'),
    head=dict(in_channels=1024),
)
