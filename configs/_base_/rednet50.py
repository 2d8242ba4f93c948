# The backbone of the dense-prediction configs. It starts from public ImageNet weights. For other weights, use
# `--cfg-options model.backbone.init_cfg.checkpoint=FILE`.
rednet50 = dict(
    type='mmrednet.RedNet',
    depth=50,
    stem_kernel_size=7,
    out_indices=(0, 1, 2, 3),
    init_cfg=dict(type='Pretrained', checkpoint='mmrednet://rednet50'),
)
runner_type = 'mmrednet.Runner'
# Inferencers read checkpoints before they build the model. This import registers the types in them as safe.
custom_imports = dict(imports=['mmrednet.registry'])
# With OneDL's packages, mmengine finds mmseg's bases only after this import. It reads bases before custom_imports.
__import__('mmrednet.patches')
