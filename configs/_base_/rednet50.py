# The backbone of the dense-prediction configs. This is the one place that names its ImageNet checkpoint: a path or an
# address. None trains from scratch, and RedNet then freezes nothing and says so.
rednet50_checkpoint = None

rednet50 = dict(
    type='mmrednet.RedNet',
    depth=50,
    stem_kernel_size=7,
    out_indices=(0, 1, 2, 3),
    init_cfg=dict(type='Pretrained', checkpoint=rednet50_checkpoint, prefix='backbone.'),
)
runner_type = 'mmrednet.Runner'
