"""The parts that all backbones share: outputs, initialisation, frozen stages, and the stages of a ResNet."""

from collections.abc import Callable, Sequence
from logging import WARNING

from mmcv.cnn import build_norm_layer
from mmengine.logging import print_log
from mmengine.model import BaseModule, constant_init, initialize
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoint.pretrained import Pretrained, entries, is_pretrained
from ..layers import Involution, LocalAttention
from .blocks import dilations_of_blocks, make_stage

KAIMING = (
    dict(type='Kaiming', layer='Conv2d'),
    dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
)


class Backbone(BaseModule):
    """The base class of the backbones.

    A subclass sets ``parts``, adds the modules that ``parts`` names, and calls :meth:`finish` at the end of its
    constructor.

    Args:
        num_stages (int): Number of stages.
        out_indices (Sequence[int]): Stages, from 0, whose outputs are returned. Defaults to None: the last stage.
        frozen_stages (int): Stages to freeze, with or without a checkpoint, as in the toolboxes' ResNet: 0 is the stem
            alone, 1 the stem and the first stage, -1 nothing. Defaults to -1.
        norm_eval (bool): Whether norm layers keep their statistics in training. Defaults to False.
        zero_init_residual (bool): Whether the weights of each block's last norm layer start at zero, even without
            ``init_weights``. A checkpoint overwrites them. Defaults to True.
        init_cfg (dict or list, optional): The initialisation by ``init_weights``: ``dict(checkpoint=...)``, see
            :class:`mmrednet.checkpoint.pretrained.Pretrained`, or mmengine's other initialisations. Defaults to None:
            Kaiming for convolutions, ones for norm layers.
        pretrained (str, optional): A checkpoint, as in the toolboxes' old configs, instead of ``init_cfg``. Defaults
            to None.

    Raises:
        TypeError: The backbone has no argument of that name.
        ValueError: An argument is out of its range, or both ``pretrained`` and ``init_cfg`` are given.

    Attributes:
        parts (Sequence[Sequence[str]]): The names of the modules of the stem, then those of each stage, in the order in
            which they are applied.
        public_weights (Sequence[str]): Names of public checkpoints of this network.
    """

    is_init: bool
    init_cfg: dict | list | None
    parts: Sequence[Sequence[str]]
    public_weights: Sequence[str] = ()

    def __init__(
        self,
        num_stages: int,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        zero_init_residual: bool = True,
        pretrained: str | None = None,
        init_cfg: dict | list | None = None,
        **unknown,
    ) -> None:
        refuse(type(self).__name__, unknown)
        out_indices = (num_stages - 1,) if out_indices is None else out_indices
        if len(out_indices) == 0 or not all(0 <= i < num_stages for i in out_indices):
            raise ValueError(f'out_indices must name stages from 0 to {num_stages - 1}, but is {out_indices!r}')
        if not -1 <= frozen_stages <= num_stages:
            raise ValueError(f'frozen_stages must be from -1 to {num_stages}, but is {frozen_stages!r}')
        super().__init__(_choose_init_cfg(pretrained, init_cfg))
        self.num_stages, self.out_indices = num_stages, tuple(out_indices)
        self.frozen_stages, self.norm_eval, self.zero_init_residual = frozen_stages, norm_eval, zero_init_residual
        # Whether train() must still warn that frozen weights are random.
        self._has_to_warn = frozen_stages >= 0 or norm_eval
        # mmaction2's recognizers take a single output as a tensor.
        scope = DefaultScope.get_current_instance()
        self._unpacks = len(out_indices) == 1 and scope is not None and scope.scope_name == 'mmaction'

    def finish(self) -> None:
        """Ends the construction: zeroes the last norm layers of the blocks, and freezes the frozen stages."""
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
            try:
                super().init_weights()
            finally:
                self.init_cfg = init_cfg
            # mmengine does not reach layers and kernel generation functions with initial values of their own.
            for layer in filter(lambda module: isinstance(module, (Involution, LocalAttention)), self.modules()):
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
        for module in self.modules() if self.zero_init_residual else ():
            if hasattr(module, 'last_norm'):
                # constant_init skips a norm layer without weights.
                constant_init(module.get_submodule(module.last_norm), 0)

    def forward(self, x: Tensor) -> tuple[Tensor, ...] | Tensor:
        """Returns the outputs of the stages ``out_indices`` for the images ``x`` (N, in_channels, H, W)."""
        outs = []
        for i, names in enumerate(self.parts):
            for name in names:
                x = self.get_submodule(name)(x)
            if i - 1 in self.out_indices:
                outs.append(x)
        return outs[0] if self._unpacks else tuple(outs)

    def train(self, mode: bool = True) -> 'Backbone':
        """Sets the mode. Frozen stages stay frozen, and norm layers with ``norm_eval`` stay in evaluation mode."""
        super().train(mode)
        if mode and self._has_to_warn:
            print_log(
                f'{type(self).__name__} trains with frozen_stages={self.frozen_stages} and norm_eval={self.norm_eval}, '
                'but no checkpoint was loaded into it: frozen weights stay random, and norm layers in evaluation mode '
                'keep their initial statistics. Set model.backbone.init_cfg.checkpoint to '
                f'{" or to ".join((*self.public_weights, "a file"))}, or train from scratch with frozen_stages=-1 and '
                'norm_eval=False.',
                logger='current',
                level=WARNING,
            )
            self._has_to_warn = False
        if mode:
            self._freeze()
        return self

    def _freeze(self) -> None:
        for names in self.parts[: self.frozen_stages + 1]:
            for name in names:
                self.get_submodule(name).eval().requires_grad_(False)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Refuses a ResNet's parameters, and notes that the weights are no longer random."""
        if next(self.parameters()).is_meta:  # nothing is loaded
            return super()._load_from_state_dict(state_dict, prefix, *args)
        own, network = {name for name, _ in self.named_parameters()}, type(self).__name__
        # Non-strict loading, such as mmengine's, would load the half of the parameters whose names both networks have.
        for name in (f'layer{i}.0.conv2.weight' for i in range(1, 5)):
            if (key := prefix + name) in state_dict and name not in own:
                raise ValueError(
                    f'{network} cannot load the weights of a ResNet, whose {key} it does not have: give a checkpoint '
                    f"of a {network}, or if a config names a ResNet's checkpoint, set load_from=None, the model's "
                    'init_cfg=None and its pretrained=None'
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
        if any(name.startswith(f'{prefix}{self.parts[0][0]}.') for name in state_dict):
            self._has_to_warn = False


class ResNetBackbone(Backbone):
    """The base class of the backbones with the stages of a ResNet.

    A subclass adds the modules ``stem`` and ``maxpool``, or calls :meth:`add_conv_stem`.

    Args:
        depth (int): A key of ``arch_settings``.
        num_stages (int): Stages to build, from 1 to 4. Defaults to 4.
        strides (Sequence[int]): Stride of each stage. Defaults to (1, 2, 2, 2).
        dilations (Sequence[int]): Dilation of each stage. Defaults to (1, 1, 1, 1).
        contract_dilation (bool): Whether a dilated stage's first block has half of its dilation, as in the toolboxes'
            ResNet. Defaults to False.
        multi_grid (Sequence[int], optional): Dilation of each block of the last stage, as in mmseg's ResNet. Defaults
            to None: the dilation of the stage.
        **kwargs: As in :class:`Backbone`.

    Attributes:
        arch_settings (dict): The number of blocks in each of the four stages, for each depth.
    """

    arch_settings: dict[int, tuple[int, int, int, int]]

    def __init__(
        self,
        depth: int,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        contract_dilation: bool = False,
        multi_grid: Sequence[int] | None = None,
        **kwargs,
    ) -> None:
        if depth not in self.arch_settings:
            raise ValueError(f'depth must be one of {tuple(self.arch_settings)}, but is {depth!r}')
        if not 1 <= num_stages <= 4:
            raise ValueError(f'num_stages must be from 1 to 4, but is {num_stages!r}')
        for name, value in (('strides', strides), ('dilations', dilations)):
            if len(value) < num_stages or min(value) < 1:
                raise ValueError(f'{name} must hold a positive int for each of {num_stages} stages, but is {value!r}')
        blocks = self.arch_settings[depth][:num_stages]
        if multi_grid is not None and (len(multi_grid) < blocks[-1] or min(multi_grid) < 1):
            raise ValueError(
                f'multi_grid must hold a positive int for each block of the last stage, but is {multi_grid!r}'
            )
        super().__init__(num_stages, **kwargs)
        self.depth, self.strides = depth, tuple(strides)
        self.dilations = dilations_of_blocks(blocks, dilations, contract_dilation, multi_grid)
        self.parts = (('stem', 'maxpool'), *((f'layer{i + 1}',) for i in range(num_stages)))

    def add_conv_stem(self, in_channels: int, channels: int, norm_cfg: dict) -> None:
        """Adds ResNet's stem of stride 4 under the names that torchvision's ResNet has."""
        self.conv1 = nn.Conv2d(in_channels, channels, 7, 2, 3, bias=False)
        self.bn1 = build_norm_layer(norm_cfg, channels)[1]
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.parts = (('conv1', 'bn1', 'relu', 'maxpool'), *self.parts[1:])

    def add_stages(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        spatial: Callable[..., nn.Module],
        norm_cfg: dict,
        with_cp: bool = False,
    ) -> None:
        """Adds the stages. Each has twice the channels of the one before.

        Args:
            in_channels (int): Channels of the stem's output.
            mid_channels (int): Channels in the middle of the first stage's blocks.
            out_channels (int): Channels of the first stage's output.
            spatial (Callable): As in :class:`.blocks.Bottleneck`.
            norm_cfg (dict): Norm layers.
            with_cp (bool): As in :class:`.blocks.Bottleneck`. Defaults to False.
        """
        for i, dilations in enumerate(self.dilations):
            stage = make_stage(
                in_channels,
                mid_channels << i,
                out_channels << i,
                self.strides[i],
                dilations,
                spatial,
                norm_cfg,
                with_cp,
            )
            self.add_module(f'layer{i + 1}', stage)
            in_channels = out_channels << i

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


def refuse(network: str, unknown: dict) -> None:
    """Raises TypeError if ``unknown`` holds an argument, by name, that a network does not have."""
    if '_delete_' in unknown:
        raise TypeError(
            f'{network} has no argument _delete_: mmengine ignores it in an entry of a list and in update() of a '
            'new-style config, and the arguments of the former backbone remain: write the whole list, or call '
            'model.merge(...)'
        )
    if unknown:
        raise TypeError(
            f'{network} has no argument {next(iter(unknown))!r}: if {network} replaces another backbone in a config, '
            "its entry needs _delete_=True, which removes the other's arguments"
        )


def _choose_init_cfg(pretrained: str | None, init_cfg: dict | list | None) -> list[dict]:
    if pretrained is not None and init_cfg is not None:
        raise ValueError(
            f'pretrained is {pretrained!r} and init_cfg is given too, but only one of them may be: a segmentor passes '
            "its own pretrained to the backbone, so set pretrained=None in the model's config"
        )
    if pretrained is not None:
        return entries(dict(checkpoint=pretrained))
    return entries(list(KAIMING) if init_cfg is None else init_cfg)
