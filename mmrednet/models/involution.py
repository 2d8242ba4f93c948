"""The toolboxes' side of the layers: what ``norm_cfg``, ``act_cfg`` and ``conv_cfg`` of a config stand for."""

from collections.abc import Callable
from functools import partial
from inspect import isclass
from math import gcd, prod

from mmcv.cnn import ConvModule, build_activation_layer, build_norm_layer
from torch import nn

from ..layers import BottleneckKernelGeneration, Involution, LinearKernelGeneration, in_place_of_conv
from ..registry import MMENGINE_MODELS, register_model

register_model()(BottleneckKernelGeneration)
register_model()(LinearKernelGeneration)


@register_model('Involution')
def build_involution(*args, channels: int | None = None, **kwargs) -> nn.Module:
    """Builds ``type='mmrednet.Involution'``.

    Args:
        *args: Without ``channels`` those of :class:`torch.nn.Conv2d`, with which the toolboxes build a ``conv_cfg``:
            see :func:`mmrednet.layers.in_place_of_conv`. Else those of :class:`mmrednet.layers.Involution`.
        channels (int, optional): Channels of an :class:`mmrednet.layers.Involution`. Defaults to None.
        **kwargs: Likewise, but in a toolbox's words: ``norm_cfg`` (dict, optional; groups of a GN that do not divide
            the few channels inside become those that do) for ``norm_layer``, ``act_cfg`` (dict, optional) for
            ``act_layer``, and ``kernel_generation`` (dict, optional).
    """
    kwargs = _translate(kwargs)
    return in_place_of_conv(*args, **kwargs) if channels is None else Involution(channels, *args, **kwargs)


def _norm_layer(norm_cfg: dict | None):
    if norm_cfg is None:
        return None

    def build(channels: int) -> nn.Module:
        groups = {'num_groups': gcd(norm_cfg['num_groups'], channels)} if 'num_groups' in norm_cfg else {}
        return build_norm_layer({**norm_cfg, **groups}, channels)[1]

    return build


def _act_layer(act_cfg: dict | None):
    if act_cfg is None:
        return None
    inplace = {'inplace': True} if _type_of('act_cfg', act_cfg) in ('ReLU', nn.ReLU) else {}
    return partial(build_activation_layer, {**inplace, **act_cfg})


def _kernel_generation(cfg: dict | Callable[..., nn.Module] | None):
    if not isinstance(cfg, dict):
        return cfg
    arguments = dict(cfg)
    name = _type_of('kernel_generation', arguments)
    del arguments['type']
    # A bare name is looked up where the config's scope looks, as mmcv does with norm layers.
    with MMENGINE_MODELS.switch_scope_and_registry(None) as registry:
        phi = name if isclass(name) else registry.get(name)
    if phi is None:
        raise KeyError(f'kernel_generation must name a registered module, but its type is {name!r}: register it')
    return partial(phi, **_translate(arguments))


def _type_of(argument: str, cfg: dict):
    if 'type' not in cfg:
        raise KeyError(f"{argument} must be a dict with a 'type', but is {cfg}: name what is to be built")
    return cfg['type']


# The toolboxes' words, the layers', and what brings the value of the one to the other's.
WORDS = {
    'norm_cfg': ('norm_layer', _norm_layer),
    'act_cfg': ('act_layer', _act_layer),
    'kernel_generation': ('kernel_generation', _kernel_generation),
}


def _translate(arguments: dict) -> dict:
    translated = {}
    for name, value in arguments.items():
        new_name, translate = WORDS.get(name, (name, lambda unchanged: unchanged))
        translated[new_name] = translate(value)
    return translated


def to_involution(conv: ConvModule, involution_cfg: dict) -> nn.Sequential:
    """Returns an involution in the place of the convolution in a ConvModule, then its norm layer and activation.

    Args:
        conv (ConvModule): A toolbox's convolution, whose channels the involution takes over.
        involution_cfg (dict): Arguments of :func:`build_involution`.
    """
    layers = [build_involution(channels=conv.out_channels, in_channels=conv.in_channels, **involution_cfg)]
    if conv.with_norm:
        layers.append(conv.norm)
    elif span := layers[0].last_convolution():
        # No norm layer mends the scale: kernels of variance 1 / (Kh * Kw) keep it. Where a toolbox's module has an
        # init_cfg for its convolutions, as FPN and RPNHead have, that has the last word, as in the released models.
        nn.init.normal_(span.weight, std=(2 / (span.in_channels * prod(layers[0].kernel_size))) ** 0.5)
    if conv.with_activation:
        layers.append(conv.activate)
    return nn.Sequential(*layers)
