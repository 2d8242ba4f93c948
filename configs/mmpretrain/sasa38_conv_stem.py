_base_ = './sasa38.py'

model = dict(backbone=dict(stem='conv'))
