"""What mmpretrain gets: RedNets by name (``rednet50_in1k`` and the others, with public weights), and small ResNets."""

from mmpretrain.apis import ModelHub
from mmpretrain.models.backbones import ResNet

from ..configs import CONFIGS, MIM
from ..registry import register_model
from .rednet import RedNet

ModelHub.register_model_index(CONFIGS / 'mmpretrain' / 'metafile.yml', config_prefix=MIM)


@register_model()
class ShallowResNet(ResNet):
    """ResNet-26 and ResNet-38 of the paper's Table 1, which mmpretrain's ResNet does not have.

    The arguments are those of mmpretrain's ResNet. The stages have as many blocks as those of RedNet-26 and RedNet-38.
    """

    arch_settings = {depth: (ResNet.arch_settings[50][0], RedNet.arch_settings[depth]) for depth in (26, 38)}
