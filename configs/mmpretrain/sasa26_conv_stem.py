_base_ = './sasa26.py'

model = dict(backbone=dict(stem='conv'))
