# The backbone of the dense-prediction configs. Where it starts from is `model.backbone.init_cfg.checkpoint`, here or
# after `--cfg-options`: mmrednet://rednet50 (public ImageNet weights), a path or an address. None trains from scratch,
# and RedNet then freezes nothing and says so.
rednet50 = dict(
    type='mmrednet.RedNet',
    depth=50,
    stem_kernel_size=7,
    out_indices=(0, 1, 2, 3),
    init_cfg=dict(type='Pretrained', checkpoint=None, prefix='backbone.'),
)
runner_type = 'mmrednet.Runner'
# Comes before a base of mmseg's, which mmengine finds with OneDL's packages after this alone.
__import__('mmrednet.patches')
