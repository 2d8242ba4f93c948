_base_ = './rednet50.py'

model = dict(backbone=dict(depth=26))
