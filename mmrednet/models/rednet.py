"""RedNet, ResNet with involutions in the place of its 3x3 convolutions (section 4.1), for every toolbox."""

from collections.abc import Sequence
from logging import WARNING
from math import gcd

from mmengine.logging import print_log
from mmengine.model import BaseModule, constant_init, initialize
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoint.pretrained import Pretrained, entries, is_pretrained
from ..layers import Involution
from ..registry import register_model
from .blocks import Bottleneck, dilations_of_blocks, make_stage, make_stem

STEMS = ('involution', 'conv')
KAIMING = (
    dict(type='Kaiming', layer='Conv2d'),
    dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
)


@register_model()
class RedNet(BaseModule):
    """RedNet-26, 38, 50, 101 and 152 (Table 1).

    Args:
        depth (int): 26, 38, 50, 101 or 152.
        in_channels (int): Channels of the image. Defaults to 3.
        stem (str): 'involution' (3x3 convolutions around an involution) or 'conv' (ResNet's 7x7 convolution, as in
            Table 6). Defaults to 'involution'.
        stem_kernel_size (int): Window of the stem's involution: 3 for classification, 7 for dense prediction.
            Defaults to 3.
        stem_channels (int): Channels of the stem's output. Defaults to 64.
        base_channels (int): Channels of the involutions in the first stage. Defaults to 64.
        num_stages (int): Stages to build, from 1 to 4. Defaults to 4.
        strides (Sequence[int]): Stride of each stage. Defaults to (1, 2, 2, 2).
        dilations (Sequence[int]): Dilation of each stage. Defaults to (1, 1, 1, 1).
        contract_dilation (bool): Whether a dilated stage's first block has half of its dilation, as in the toolboxes'
            ResNet. Defaults to False.
        multi_grid (Sequence[int], optional): Dilation of each block of the last stage, as in mmseg's ResNet. Defaults
            to None: the dilation of the stage.
        out_indices (Sequence[int]): Stages, from 0, whose outputs are returned. Defaults to (3,).
        kernel_size (int): Window of the trunk's involutions. Defaults to 7.
        group_channels (int, optional): Number of channels that share a kernel, or None: all channels. Defaults to 16.
        reduction_ratio (int): Reduction ratio of the kernel generation function. Defaults to 4.
        kernel_generation (dict, optional): Config of another kernel generation function, for stem and trunk.
            Defaults to None.
        frozen_stages (int): Stages to freeze, with or without a checkpoint, as in the toolboxes' ResNet: 0 is the stem
            alone, 1 the stem and the first stage, -1 nothing. Defaults to -1.
        norm_cfg (dict): Norm layers. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Whether norm layers keep their statistics in training. Defaults to False.
        with_cp (bool): Whether blocks recompute activations in the backward pass, for less memory. Defaults to False.
        zero_init_residual (bool): Whether the weights of each block's last norm layer start at zero, even without
            ``init_weights``. A checkpoint overwrites them. Defaults to True.
        fused (bool, optional): As in :class:`mmrednet.layers.Involution`. Defaults to None: in inference only.
        backend (str, optional): Backend of :func:`mmrednet.ops.involution2d`. Defaults to None, the fastest.
        init_cfg (dict or list, optional): The initialisation by ``init_weights``: ``dict(checkpoint=...)``, see
            :class:`mmrednet.checkpoint.pretrained.Pretrained`, or mmengine's other initialisations. Defaults to None:
            Kaiming for convolutions, ones for norm layers.
        pretrained (str, optional): A checkpoint, as in the toolboxes' old configs, instead of ``init_cfg``. Defaults
            to None.

    Raises:
        TypeError: RedNet has no argument of that name.
        ValueError: An argument is out of its range, or both ``pretrained`` and ``init_cfg`` are given.

    Shape:
        (N, in_channels, H, W) to a tuple of (N, C_i, H_i, W_i), where ``C_i = 4 * base_channels * 2^i`` and, with the
        default strides, ``H_i = ceil(H / 2^(i + 2))``. In mmaction2's scope, a single output is a tensor and not a
        tuple, as in mmaction2's ResNet.

    Example:
        >>> tuple(RedNet(50, out_indices=(0, 1, 2, 3))(torch.rand(1, 3, 225, 225))[3].shape)
        (1, 2048, 8, 8)
    """

    is_init: bool
    init_cfg: dict | list | None
    arch_settings = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        stem: str = 'involution',
        stem_kernel_size: int = 3,
        stem_channels: int = 64,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        contract_dilation: bool = False,
        multi_grid: Sequence[int] | None = None,
        out_indices: Sequence[int] = (3,),
        kernel_size: int = 7,
        group_channels: int | None = 16,
        reduction_ratio: int = 4,
        kernel_generation: dict | None = None,
        frozen_stages: int = -1,
        norm_cfg: dict = dict(type='BN', requires_grad=True),
        norm_eval: bool = False,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        fused: bool | None = None,
        backend: str | None = None,
        pretrained: str | None = None,
        init_cfg: dict | list | None = None,
        **unknown,
    ) -> None:
        _refuse(unknown)
        _check_widths(stem, stem_channels, base_channels, group_channels)
        _check_stages(depth, num_stages, strides, dilations, multi_grid, out_indices, frozen_stages)
        super().__init__(_choose_init_cfg(pretrained, init_cfg))
        self.depth, self.num_stages, self.out_indices = depth, num_stages, tuple(out_indices)
        self.frozen_stages, self.norm_eval, self.zero_init_residual = frozen_stages, norm_eval, zero_init_residual
        # Whether train() must still warn that frozen weights are random.
        self._has_to_warn = frozen_stages >= 0 or norm_eval
        # mmaction2's recognizers take a single output as a tensor.
        scope = DefaultScope.get_current_instance()
        self._unpacks = len(out_indices) == 1 and scope is not None and scope.scope_name == 'mmaction'

        phi_cfg = dict(reduction_ratio=reduction_ratio, norm_cfg=norm_cfg, kernel_generation=kernel_generation)
        involution_cfg = dict(group_channels=group_channels, fused=fused, backend=backend, **phi_cfg)
        self.stem = make_stem(stem, in_channels, stem_channels, norm_cfg, stem_kernel_size, involution_cfg)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        involution_cfg['kernel_size'] = kernel_size
        channels = stem_channels
        grids = dilations_of_blocks(self.arch_settings[depth][:num_stages], dilations, contract_dilation, multi_grid)
        for i, grid in enumerate(grids):
            mid_channels = base_channels * 2**i
            stage = make_stage(channels, mid_channels, strides[i], grid, with_cp, norm_cfg, involution_cfg)
            self.add_module(f'layer{i + 1}', stage)
            channels = Bottleneck.expansion * mid_channels
        self._zero_residuals()
        self._freeze()

    def init_weights(self) -> None:
        """Initialises the weights, then loads the checkpoints that ``init_cfg`` names.

        Raises:
            OSError: A checkpoint is not a file, or cannot be downloaded.
            ImportError: A checkpoint's format needs a package that is not installed.
            ValueError: A checkpoint cannot be read or does not fit.
        """
        if self.is_init:
            return super().init_weights()  # it warns about a second call
        init_cfg, checkpoints = self.init_cfg, self._checkpoints()
        others = [entry for entry in entries(init_cfg) if not is_pretrained(entry)]
        if others or not checkpoints:
            self.init_cfg = others
            super().init_weights()
            self.init_cfg = init_cfg
            # mmengine does not reach a user's own kernel generation functions.
            for layer in filter(lambda module: isinstance(module, Involution), self.modules()):
                for module in layer.modules():
                    if hasattr(module, 'init_weights') and not getattr(module, 'is_init', False):
                        module.init_weights()
            self._zero_residuals()
        # Checkpoints come last, so that nothing overwrites their values.
        initialize(self, checkpoints)
        self.is_init = True

    def check_checkpoints(self) -> None:
        """Reads and checks the checkpoints that ``init_cfg`` names, without loading them into the network.

        Raises:
            OSError: As in :meth:`init_weights`.
            ImportError: As in :meth:`init_weights`.
            ValueError: As in :meth:`init_weights`.
        """
        for entry in [] if self.is_init else self._checkpoints():
            Pretrained(**{key: value for key, value in entry.items() if key not in ('type', 'override')}).read(self)

    def _checkpoints(self) -> list[dict]:
        return [{**entry, 'type': Pretrained} for entry in entries(self.init_cfg) if is_pretrained(entry)]

    def _zero_residuals(self) -> None:
        if self.zero_init_residual:
            for module in self.modules():
                if isinstance(module, Bottleneck):
                    # constant_init skips a norm layer without weights.
                    constant_init(module.bn3, 0)

    def forward(self, x: Tensor) -> tuple[Tensor, ...] | Tensor:
        """Returns the outputs of the stages ``out_indices`` for the images ``x`` (N, in_channels, H, W)."""
        x = self.maxpool(self.stem(x))
        outs = []
        for i in range(self.num_stages):
            x = self.get_submodule(f'layer{i + 1}')(x)
            if i in self.out_indices:
                outs.append(x)
        return outs[0] if self._unpacks else tuple(outs)

    def train(self, mode: bool = True) -> 'RedNet':
        """Sets the mode. Frozen stages stay frozen, and norm layers with ``norm_eval`` stay in evaluation mode."""
        super().train(mode)
        if mode and self._has_to_warn:
            print_log(
                f'RedNet trains with frozen_stages={self.frozen_stages} and norm_eval={self.norm_eval}, but no '
                'checkpoint was loaded into it: frozen weights stay random, and norm layers in evaluation mode keep '
                'their initial statistics. Set model.backbone.init_cfg.checkpoint to '
                f'mmrednet://rednet{self.depth} or to a file, or train from scratch with frozen_stages=-1 and '
                'norm_eval=False.',
                logger='current',
                level=WARNING,
            )
            self._has_to_warn = False
        if mode:
            self._freeze()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Returns the layer of a parameter, for learning rates that decay with depth, as mmpretrain's ResNet does.

        Args:
            param_name (str): The parameter's name in the model.
            prefix (str): The prefix of the backbone's parameters in the model. Defaults to ''.

        Returns:
            tuple[int, int]: The layer, from 0 for the stem, and the number of layers; the head is the last.
        """
        blocks = self.arch_settings[self.depth]
        # For each stage, the number of neighbouring blocks that count as one layer.
        spans = (blocks[0], *((4, 4) if self.depth == 152 else (2, 3)), blocks[3])
        layers = [-(-count // span) for count, span in zip(blocks, spans, strict=True)]
        total = sum(layers) + 2
        if not param_name.startswith(prefix):
            return total - 1, total
        stage, _, rest = param_name.removeprefix(prefix).partition('.')
        if not stage.startswith('layer'):
            return 0, total
        i = int(stage.removeprefix('layer')) - 1
        return 1 + sum(layers[:i]) + int(rest.partition('.')[0]) // spans[i], total

    def _freeze(self) -> None:
        stages = [self.stem] if self.frozen_stages >= 0 else []
        stages += [self.get_submodule(f'layer{i}') for i in range(1, self.frozen_stages + 1)]
        for stage in stages:
            stage.eval().requires_grad_(False)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Refuses a ResNet's parameters, and notes that the weights are no longer random."""
        if next(self.parameters()).is_meta:  # nothing is loaded
            return super()._load_from_state_dict(state_dict, prefix, *args)
        # Non-strict loading, such as mmengine's, would load the half of the parameters whose names both networks have.
        if (key := f'{prefix}layer1.0.conv2.weight') in state_dict:
            raise ValueError(
                f'RedNet cannot load the weights of a ResNet, whose {key} it does not have: give a checkpoint of a '
                "RedNet, or if a config names a ResNet's checkpoint, set load_from=None, the model's init_cfg=None "
                'and its pretrained=None'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
        if any(name.startswith(f'{prefix}stem.') for name in state_dict):
            self._has_to_warn = False


def _refuse(unknown: dict) -> None:
    if '_delete_' in unknown:
        raise TypeError(
            'RedNet has no argument _delete_: mmengine ignores it in an entry of a list and in update() of a new-style '
            'config, and the arguments of the former backbone remain: write the whole list, or call model.merge(...)'
        )
    if unknown:
        raise TypeError(
            f'RedNet has no argument {next(iter(unknown))!r}: if RedNet replaces another backbone in a config, its '
            "entry needs _delete_=True, which removes the other's arguments"
        )


def _check_widths(stem: str, stem_channels: int, base_channels: int, group_channels: int | None) -> None:
    if stem not in STEMS:
        raise ValueError(f'stem must be one of {STEMS}, but is {stem!r}')
    widths = [('base_channels', base_channels)]
    if stem == 'involution':
        widths.append(('half of stem_channels', stem_channels // 2))
    for name, width in widths:
        if group_channels is not None and group_channels > 0 and width % group_channels:
            raise ValueError(
                f'{name} must be a multiple of group_channels, {group_channels}, but is {width}: give other '
                f'channels, or group_channels={gcd(group_channels, width)}'
            )


def _check_stages(depth, num_stages, strides, dilations, multi_grid, out_indices, frozen_stages) -> None:
    if depth not in RedNet.arch_settings:
        raise ValueError(f'depth must be one of {tuple(RedNet.arch_settings)}, but is {depth!r}')
    if not 1 <= num_stages <= 4:
        raise ValueError(f'num_stages must be from 1 to 4, but is {num_stages!r}')
    for name, value in (('strides', strides), ('dilations', dilations)):
        if len(value) < num_stages or min(value) < 1:
            raise ValueError(f'{name} must hold a positive int for each of {num_stages} stages, but is {value!r}')
    last = RedNet.arch_settings[depth][num_stages - 1]
    if multi_grid is not None and (len(multi_grid) < last or min(multi_grid) < 1):
        raise ValueError(f'multi_grid must hold a positive int for each block of the last stage, but is {multi_grid!r}')
    if len(out_indices) == 0 or not all(0 <= i < num_stages for i in out_indices):
        raise ValueError(f'out_indices must name stages from 0 to {num_stages - 1}, but is {out_indices!r}')
    if not -1 <= frozen_stages <= num_stages:
        raise ValueError(f'frozen_stages must be from -1 to {num_stages}, but is {frozen_stages!r}')


def _choose_init_cfg(pretrained: str | None, init_cfg: dict | list | None) -> list[dict]:
    if pretrained is not None and init_cfg is not None:
        raise ValueError(
            f'pretrained is {pretrained!r} and init_cfg is given too, but only one of them may be: a segmentor passes '
            "its own pretrained to the backbone, so set pretrained=None in the model's config"
        )
    if pretrained is not None:
        return entries(dict(checkpoint=pretrained))
    return entries(list(KAIMING) if init_cfg is None else init_cfg)
