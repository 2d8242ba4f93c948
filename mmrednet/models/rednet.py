"""RedNet, ResNet with involutions in the place of its 3x3 convolutions (section 4.1), for every toolbox."""

from collections import OrderedDict
from collections.abc import Sequence
from logging import WARNING
from math import gcd

from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit, constant_init, initialize, update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint as recompute

from ..checkpoint import check, load, missing, widen
from ..layers import Involution
from ..patches import RESUMES
from ..registry import register_model
from .involution import build_involution

STEMS = ('involution', 'conv')
# In a state dict's metadata: frozen stages were asked for and not frozen, since training began with random weights.
FROM_SCRATCH = 'from_scratch'


class Bottleneck(BaseModule):
    """ResNet's bottleneck block, whose 3x3 convolution is an involution.

    Args:
        in_channels (int): Channels of the input.
        mid_channels (int): Channels of the involution; the output has ``expansion`` times as many.
        stride (int): Stride of the involution. Defaults to 1.
        downsample (nn.Module, optional): What brings the input to the output's shape. Defaults to None.
        with_cp (bool): Whether to recompute activations in the backward pass. Defaults to False.
        norm_cfg (dict): Norm layers. Defaults to ``dict(type='BN')``.
        involution_cfg (dict, optional): Arguments of :func:`.involution.build_involution`. Defaults to None.

    Shape:
        (N, in_channels, H, W) to (N, expansion * mid_channels, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        with_cp: bool = False,
        norm_cfg: dict = dict(type='BN'),
        involution_cfg: dict | None = None,
    ) -> None:
        super().__init__()
        out_channels = self.expansion * mid_channels
        self.conv1 = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        self.bn1 = build_norm_layer(norm_cfg, mid_channels)[1]
        self.conv2 = build_involution(channels=mid_channels, stride=stride, **(involution_cfg or {}))
        self.bn2 = build_norm_layer(norm_cfg, mid_channels)[1]
        self.conv3 = nn.Conv2d(mid_channels, out_channels, 1, bias=False)
        self.bn3 = build_norm_layer(norm_cfg, out_channels)[1]
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to ``x`` (N, in_channels, H, W)."""
        if self.with_cp and x.requires_grad:
            x = recompute(self._residual, x, use_reentrant=False)
        else:
            x = self._residual(x)
        return self.relu(x)

    def _residual(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)).add_(identity)


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
            to None: the stage's.
        out_indices (Sequence[int]): Stages, from 0, whose outputs are returned. Defaults to (3,).
        kernel_size (int): Window of the trunk's involutions. Defaults to 7.
        group_channels (int, optional): Channels that share a kernel; None: all of them. Defaults to 16.
        reduction_ratio (int): Reduction ratio of the kernel generation function. Defaults to 4.
        kernel_generation (dict, optional): Config of another kernel generation function, for stem and trunk.
            Defaults to None.
        frozen_stages (int): Stages to freeze: 0 is the stem alone, 1 the stem and the first stage, -1 nothing. Holds
            once a checkpoint fills the weights, by ``init_cfg`` or ``load_from``: random weights are never frozen.
            Defaults to -1.
        norm_cfg (dict): Norm layers. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Whether norm layers keep their statistics in training. Like ``frozen_stages``, with a
            checkpoint only. Defaults to False.
        with_cp (bool): Whether blocks recompute activations in the backward pass, for less memory. Defaults to False.
        zero_init_residual (bool): Whether a block's last norm layer starts at zero, where no checkpoint fills it.
            Defaults to True.
        fused (bool, optional): As in :class:`mmrednet.layers.Involution`. Defaults to None: in inference only.
        backend (str, optional): Backend of :func:`mmrednet.ops.involution2d`. Defaults to None, the fastest.
        init_cfg (dict or list, optional): ``dict(type='Pretrained', checkpoint=...)`` or other initialisations; a
            checkpoint, see :func:`mmrednet.checkpoint.load`, of None stands for the default. With ``may_differ``, the
            beginnings of names, the checkpoint need not fit there. Defaults to None: Kaiming for convolutions, ones for
            norm layers.
        pretrained (str, optional): The checkpoint in the place of ``init_cfg``, as the toolboxes' old configs have it.
            Defaults to None.

    Raises:
        TypeError: There is no such argument.
        ValueError: An argument is out of its range, or both ``pretrained`` and ``init_cfg`` are given.

    Shape:
        (N, in_channels, H, W) to a tuple of (N, C_i, H_i, W_i), where ``C_i = 4 * base_channels * 2^i`` and, with the
        default strides, ``H_i = ceil(H / 2^(i + 2))``.

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
        if '_delete_' in unknown:
            raise TypeError(
                'RedNet has no argument _delete_: mmengine obeys it in neither an entry of a list nor update() of a '
                'new-style config, where the arguments of the backbone before remain: write the list anew, or call '
                'model.merge(...)'
            )
        if unknown:
            raise TypeError(
                f'RedNet has no argument {next(iter(unknown))!r}: where it takes the place of another backbone in a '
                "config, its entry begins with _delete_=True, so that the other's arguments go"
            )
        if pretrained is not None and init_cfg is not None:
            raise ValueError(
                f'pretrained, which a segmentor hands on to its backbone, names {pretrained!r}, and init_cfg is given '
                "too: set pretrained=None beside the backbone, in the model's config"
            )
        if pretrained is not None:
            init_cfg = dict(type='Pretrained', checkpoint=pretrained)
        if depth not in self.arch_settings:
            raise ValueError(f'depth must be one of {tuple(self.arch_settings)}, but is {depth!r}')
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
        if not 1 <= num_stages <= 4:
            raise ValueError(f'num_stages must be from 1 to 4, but is {num_stages!r}')
        for name, value in (('strides', strides), ('dilations', dilations)):
            if len(value) < num_stages or min(value) < 1:
                raise ValueError(f'{name} must hold a positive int for each of {num_stages} stages, but is {value!r}')
        if multi_grid is not None and (
            len(multi_grid) < self.arch_settings[depth][num_stages - 1] or min(multi_grid) < 1
        ):
            raise ValueError(
                f'multi_grid must hold a positive int for each block of the last stage, but is {multi_grid!r}'
            )
        if len(out_indices) == 0 or not all(0 <= i < num_stages for i in out_indices):
            raise ValueError(f'out_indices must name stages from 0 to {num_stages - 1}, but is {out_indices!r}')
        if not -1 <= frozen_stages <= num_stages:
            raise ValueError(f'frozen_stages must be from -1 to {num_stages}, but is {frozen_stages!r}')
        entries = _entries(init_cfg)
        given = [entry for entry in entries if not _is_pretrained(entry) or entry.get('checkpoint', '') is not None]
        self._lacks_checkpoint = len(given) < len(entries)
        # Whether a checkpoint fills the weights: the one here, or one that is loaded later.
        self.pretrained = any(_is_pretrained(entry) for entry in given)
        if init_cfg is None or self._lacks_checkpoint:
            init_cfg = given or [
                dict(type='Kaiming', layer='Conv2d'),
                dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
            ]
        super().__init__(init_cfg)
        self.depth = depth
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self._has_warned = False
        self.zero_init_residual = zero_init_residual

        involution_cfg = dict(
            group_channels=group_channels,
            reduction_ratio=reduction_ratio,
            norm_cfg=norm_cfg,
            kernel_generation=kernel_generation,
            fused=fused,
            backend=backend,
        )
        self.stem = _make_stem(stem, in_channels, stem_channels, norm_cfg, stem_kernel_size, involution_cfg)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        in_channels = stem_channels
        for i in range(num_stages):
            mid_channels = base_channels * 2**i
            block_dilations = [dilations[i]] * self.arch_settings[depth][i]
            if contract_dilation and dilations[i] > 1:
                block_dilations[0] //= 2
            if multi_grid is not None and i == num_stages - 1:
                block_dilations = list(multi_grid[: len(block_dilations)])
            stage = _make_stage(
                in_channels,
                mid_channels,
                strides[i],
                block_dilations,
                with_cp,
                norm_cfg,
                dict(kernel_size=kernel_size, **involution_cfg),
            )
            self.add_module(f'layer{i + 1}', stage)
            in_channels = Bottleneck.expansion * mid_channels
        self.num_stages = num_stages
        self._freeze()

    def init_weights(self) -> None:
        """Initialises the weights, then loads the checkpoints that ``init_cfg`` names.

        Raises:
            FileNotFoundError: A checkpoint is a path where no file is.
            ValueError: A checkpoint cannot be read or does not fit.
        """
        if self.is_init:
            # Which warns.
            return super().init_weights()
        init_cfg = self.init_cfg
        others = [entry for entry in _entries(init_cfg) if not _is_pretrained(entry)]
        checkpoints = [{**entry, 'type': _Pretrained} for entry in _entries(init_cfg) if _is_pretrained(entry)]
        if others or not checkpoints:
            self.init_cfg = others
            super().init_weights()
            self.init_cfg = init_cfg
            # Kernel generation functions of a user's own, to which mmengine does not come.
            for layer in filter(lambda module: isinstance(module, Involution), self.modules()):
                for module in layer.modules():
                    if hasattr(module, 'init_weights') and not getattr(module, 'is_init', False):
                        module.init_weights()
            if self.zero_init_residual:
                for module in self.modules():
                    if isinstance(module, Bottleneck):
                        # Which leaves a norm layer without weights alone.
                        constant_init(module.bn3, 0)
        # Last, so that what they give stays.
        initialize(self, checkpoints)
        self.is_init = True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs of the stages ``out_indices`` for the images ``x`` (N, in_channels, H, W)."""
        x = self.maxpool(self.stem(x))
        outs = []
        for i in range(self.num_stages):
            x = self.get_submodule(f'layer{i + 1}')(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> 'RedNet':
        """Sets the mode, and keeps what is frozen frozen."""
        super().train(mode)
        if mode and not self.pretrained and not self._has_warned and (self._is_to_freeze or self._lacks_checkpoint):
            print_log(
                'RedNet trains from scratch, since neither its init_cfg nor load_from names a checkpoint: '
                f'frozen_stages={self.frozen_stages} and norm_eval={self.norm_eval} do not apply, nothing is frozen. '
                f'For ImageNet weights set model.backbone.init_cfg.checkpoint to mmrednet://rednet{self.depth} or to a '
                'file.',
                logger='current',
                level=WARNING,
            )
            self._has_warned = True
        if mode:
            self._freeze()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Says how deep a parameter lies, for learning rates that decay with depth, as mmpretrain's ResNet does.

        Args:
            param_name (str): The parameter's name in the model.
            prefix (str): How the names of the backbone's parameters begin there. Defaults to ''.

        Returns:
            tuple[int, int]: The layer, from 0 for the stem, and the number of layers, of which the head is the last.
        """
        blocks = self.arch_settings[self.depth]
        # Neighbouring blocks that are one layer.
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

    def expect_checkpoint(self) -> None:
        """Freezes what is to be frozen already before a checkpoint is loaded, which a wrapper of the model may need."""
        self.pretrained = True
        self._freeze()

    @property
    def _is_to_freeze(self) -> bool:
        return self.frozen_stages >= 0 or self.norm_eval

    def _freeze(self) -> None:
        if not self.pretrained:
            return
        stages = [self.stem] if self.frozen_stages >= 0 else []
        stages += [self.get_submodule(f'layer{i}') for i in range(1, self.frozen_stages + 1)]
        for stage in stages:
            stage.eval().requires_grad_(False)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # So that a run that began with random weights, unfrozen, goes on so when it is resumed.
        if self._is_to_freeze and not self.pretrained and hasattr(destination, '_metadata'):
            destination._metadata[prefix.removesuffix('.')][FROM_SCRATCH] = True

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        """Notes, whoever loads, that the weights are not random any more."""
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        goes_on = RESUMES.get() and local_metadata.get(FROM_SCRATCH)
        if not goes_on and any(key.startswith(f'{prefix}stem.') for key in state_dict):
            self.expect_checkpoint()


class _Pretrained(PretrainedInit):
    """mmengine's initialiser from a checkpoint, which here is of any layout and has to fit.

    Args:
        *args: As in mmengine.
        may_differ (Sequence[str]): Beginnings of the backbone's names that may be missing in the checkpoint, unexpected
            or of another shape; those parameters keep their initial values. Defaults to ``()``.
        **kwargs: As in mmengine.
    """

    def __init__(self, *args, may_differ: Sequence[str] = (), **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.may_differ = tuple(may_differ)

    def __call__(self, module: nn.Module) -> None:
        path = str(self.checkpoint)
        if missing(path):
            raise FileNotFoundError(
                f"init_cfg of RedNet names the checkpoint {path!r}, where no file is: give a checkpoint's path or "
                'address, or None to train from scratch'
            )
        # DataParallel's, which is not there any more.
        prefix = f'{self.prefix.removesuffix(".")}.'.removeprefix('module.') if self.prefix else ''
        state_dict = OrderedDict(
            (name.removeprefix(prefix), value)
            for name, value in load(path, self.map_location)['state_dict'].items()
            if name.startswith(prefix)
        )
        remedy = (
            "give init_cfg a RedNet's checkpoint of the same depth, stem and stem_kernel_size (or a smaller one, such "
            "as classification's 3 for dense prediction's 7), and as prefix how its names begin, often 'backbone.', "
            f'which is {prefix!r} here, or list as its may_differ how the names begin of parameters that may keep '
            "their initial values: ['stem.0.'] for images of other channels"
        )
        # A checkpoint has all stages, also where fewer are built.
        absent = [f'layer{i}.' for i in range(1, 5) if not hasattr(module, f'layer{i}')]
        state_dict = check(module, widen(module, state_dict, path), path, remedy, [*absent, *self.may_differ])
        module.load_state_dict(state_dict, strict=False)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())


def _entries(init_cfg: dict | list | None) -> list[dict]:
    return [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or [])


def _is_pretrained(entry: dict) -> bool:
    # By name, by class or, in a new-style config that was dumped, by the class's path.
    kind = entry.get('type')
    return (WEIGHT_INITIALIZERS.get(kind) if isinstance(kind, str) else kind) is PretrainedInit


def _make_stem(
    stem: str, in_channels: int, stem_channels: int, norm_cfg: dict, kernel_size: int, involution_cfg: dict
) -> nn.Sequential:
    if stem == 'conv':
        return nn.Sequential(ConvModule(in_channels, stem_channels, 7, 2, 3, norm_cfg=norm_cfg))
    mid_channels = stem_channels // 2
    return nn.Sequential(
        ConvModule(in_channels, mid_channels, 3, 2, 1, norm_cfg=norm_cfg),
        build_involution(channels=mid_channels, kernel_size=kernel_size, **involution_cfg),
        build_norm_layer(norm_cfg, mid_channels)[1],
        nn.ReLU(inplace=True),
        ConvModule(mid_channels, stem_channels, 3, padding=1, norm_cfg=norm_cfg),
    )


def _make_stage(
    in_channels: int,
    mid_channels: int,
    stride: int,
    dilations: Sequence[int],
    with_cp: bool,
    norm_cfg: dict,
    involution_cfg: dict,
) -> nn.Sequential:
    """Makes a block for each of ``dilations``; the first has the stride."""
    out_channels = Bottleneck.expansion * mid_channels
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), build_norm_layer(norm_cfg, out_channels)[1]
        )
    blocks = []
    for dilation in dilations:
        involution = dict(dilation=dilation, **involution_cfg)
        blocks.append(Bottleneck(in_channels, mid_channels, stride, downsample, with_cp, norm_cfg, involution))
        in_channels, stride, downsample = out_channels, 1, None
    return nn.Sequential(*blocks)
