"""Builds involution layers from configs: ``norm_cfg``, ``act_cfg``, ``conv_cfg`` and ``kernel_generation``."""

from collections.abc import Callable
from functools import partial
from inspect import isclass
from math import gcd, prod

from mmcv.cnn import ConvModule, build_activation_layer, build_norm_layer
from torch import nn

from .. import layers
from ..layers import Involution, in_place_of_conv
from ..registry import MMENGINE_MODELS, register_model

for _name in ('Bottleneck', 'Linear', 'LocalRelation', 'Neighbourhood', 'Pairwise', 'Patchwise', 'SelfAttention'):
    register_model()(getattr(layers, f'{_name}KernelGeneration'))


@register_model('Involution')
def build_involution(*args, channels: int | None = None, **kwargs) -> nn.Module:
    """Builds ``type='mmrednet.Involution'``.

    With ``channels``, it builds a :class:`mmrednet.layers.Involution`. Without ``channels``, it builds the layer for a
    ``conv_cfg``, see :func:`mmrednet.layers.in_place_of_conv`.

    Args:
        *args: The other arguments of Involution, or without ``channels`` those of :class:`torch.nn.Conv2d`.
        channels (int, optional): Channels of the Involution. Defaults to None.
        **kwargs: The same arguments by name. ``norm_cfg`` (dict, optional) replaces ``norm_layer``, ``act_cfg`` (dict,
            optional) replaces ``act_layer``, and ``kernel_generation`` is a config (dict, optional). If a GN's number
            of groups does not divide the channels, it gets the largest number that divides both.

    Raises:
        KeyError: ``act_cfg`` or ``kernel_generation`` has no type, or ``kernel_generation`` has an unknown one.
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
    # A name without a scope is looked up in the config's scope, as mmcv looks up norm layers.
    with MMENGINE_MODELS.switch_scope_and_registry(None) as registry:
        phi = name if isclass(name) else registry.get(name)
    if phi is None:
        raise KeyError(f'kernel_generation must have the type of a registered module, but has {name!r}: register it')
    return partial(phi, **_translate(arguments))


def _type_of(argument: str, cfg: dict):
    if 'type' not in cfg:
        raise KeyError(f"{argument} must be a dict with a 'type', but is {cfg}: add the type of the module")
    return cfg['type']


# The name of an argument in configs, its name in the layers, and the function that converts its value.
ARGUMENTS = {
    'norm_cfg': ('norm_layer', _norm_layer),
    'act_cfg': ('act_layer', _act_layer),
    'kernel_generation': ('kernel_generation', _kernel_generation),
}


def _translate(arguments: dict) -> dict:
    translated = {}
    for name, value in arguments.items():
        new_name, translate = ARGUMENTS.get(name, (name, lambda unchanged: unchanged))
        translated[new_name] = translate(value)
    return translated


def to_involution(conv: ConvModule, involution_cfg: dict) -> nn.Sequential:
    """Returns a ConvModule's layers with an involution in the place of its convolution.

    Args:
        conv (ConvModule): The convolution, norm layer and activation of a toolbox. The involution gets its channels.
        involution_cfg (dict): Arguments of :func:`build_involution`.
    """
    layers = [build_involution(channels=conv.out_channels, in_channels=conv.in_channels, **involution_cfg)]
    if conv.with_norm:
        layers.append(conv.norm)
    elif span := layers[0].last_convolution():
        # Without a norm layer, kernels of variance 1 / (Kh * Kw) keep the scale of the features. The init_cfg of a
        # toolbox's module, such as FPN or RPNHead, overwrites these values, as it did in the released models.
        nn.init.normal_(span.weight, std=(2 / (span.in_channels * prod(layers[0].kernel_size))) ** 0.5)
    if conv.with_activation:
        layers.append(conv.activate)
    return nn.Sequential(*layers)
