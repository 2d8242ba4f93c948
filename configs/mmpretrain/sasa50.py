_base_ = './rednet50.py'

model = dict(backbone=dict(_delete_=True, type='mmrednet.StandAloneResNet', depth=50))
