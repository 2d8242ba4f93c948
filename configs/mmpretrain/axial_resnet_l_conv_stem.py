_base_ = './rednet50.py'

model = dict(backbone=dict(_delete_=True, type='mmrednet.AxialResNet', width=1.0, stem='conv'))
