# The backbone of the dense-prediction configs. It starts from public ImageNet weights; others are given as
# `--cfg-options model.backbone.init_cfg.checkpoint=FILE`.
rednet50 = dict(
    type='mmrednet.RedNet',
    depth=50,
    stem_kernel_size=7,
    out_indices=(0, 1, 2, 3),
    init_cfg=dict(type='Pretrained', checkpoint='mmrednet://rednet50'),
)
runner_type = 'mmrednet.Runner'
# Inferencers read checkpoints before they build the model, so the types in them have to be known as safe before that.
custom_imports = dict(imports=['mmrednet.registry'])
# mmengine finds a base of mmseg's with OneDL's packages only after this, and reads bases before custom_imports.
__import__('mmrednet.patches')
