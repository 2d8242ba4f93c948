_base_ = './sasa50.py'

model = dict(backbone=dict(stem='conv'))
