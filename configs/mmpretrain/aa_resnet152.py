_base_ = './rednet50.py'

model = dict(backbone=dict(_delete_=True, type='mmrednet.AAResNet', depth=152))
