"""Adds RedNets to mmpretrain's models by name: ``rednet50_in1k`` and the others, with public weights."""

from mmpretrain.apis import ModelHub

from ..configs import CONFIGS, MIM

ModelHub.register_model_index(CONFIGS / 'mmpretrain' / 'metafile.yml', config_prefix=MIM)
