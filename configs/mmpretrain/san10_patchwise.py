_base_ = './rednet50.py'

model = dict(backbone=dict(_delete_=True, type='mmrednet.SAN', depth=10, attention='patchwise'))
