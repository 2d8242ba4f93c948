"""Initialisation of backbones from the checkpoints that their ``init_cfg`` names."""

from collections import OrderedDict
from collections.abc import Sequence

from mmengine.model import PretrainedInit, update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from .files import load
from .layout import check, widen

REMEDIES = """
- start from a file of your own:
  --cfg-options model.backbone.init_cfg.checkpoint=FILE
- train from scratch:
  --cfg-options model.backbone.init_cfg=None model.backbone.frozen_stages=-1 model.backbone.norm_eval=False
- load_from or --resume loads the whole model:
  --cfg-options model.backbone.init_cfg=None"""


def entries(init_cfg: dict | list | None) -> list[dict]:
    """Returns the entries of an ``init_cfg``. An entry with a checkpoint and without a type becomes a Pretrained."""
    listed = [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or [])
    return [
        {'type': 'Pretrained', **entry} if 'checkpoint' in entry and 'type' not in entry else entry for entry in listed
    ]


def is_pretrained(entry: dict) -> bool:
    """Returns whether an entry of an ``init_cfg`` names a checkpoint."""
    # The type is a name, a class or, in a new-style config that was dumped, the path of the class.
    kind = entry.get('type')
    return (WEIGHT_INITIALIZERS.get(kind) if isinstance(kind, str) else kind) is PretrainedInit


class Pretrained(PretrainedInit):
    """mmengine's initialiser from a checkpoint. The checkpoint may have any layout, and must fit the backbone.

    Args:
        checkpoint (str): See :func:`mmrednet.checkpoint.load`.
        prefix (str, optional): The prefix of the backbone's parameters in the checkpoint. Defaults to None: the prefix
            is found from the names.
        map_location (str, optional): As in mmengine.
        may_differ (Sequence[str]): Prefixes of the backbone's names that may be missing in the checkpoint, unexpected
            or of another shape. Those parameters keep their initial values. Defaults to ``()``.
    """

    def __init__(self, *args, may_differ: Sequence[str] = (), **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.may_differ = tuple(may_differ)

    def read(self, module: nn.Module) -> OrderedDict:
        """Reads and checks the checkpoint for a backbone, without changing it. Raises the errors of ``load``."""
        path = str(self.checkpoint)
        try:
            loaded = load(path, self.map_location)['state_dict']
        except Exception as error:  # mmengine's storage clients raise any type
            kind = type(error) if type(error) in (FileNotFoundError, OSError, ImportError) else ValueError
            raise kind(
                f'the backbone cannot start from {path}, which its init_cfg names: {error}\nDo one of these:{REMEDIES}'
            ) from error
        prefix = self._find_prefix(module, loaded, path)
        state_dict = OrderedDict(
            (name.removeprefix(prefix), value) for name, value in loaded.items() if name.startswith(prefix)
        )
        remedy = (
            f'give init_cfg the checkpoint of a {type(module).__name__} with the same depth, stem and other arguments. '
            '(A smaller stem_kernel_size of a RedNet also works: 3 of classification for 7 of dense prediction.) The '
            f"prefix is {prefix!r} here; it must be the beginning of the names in the checkpoint, often 'backbone.'. "
            "may_differ lists prefixes of names whose parameters keep their initial values, such as ['stem.0.'] of a "
            'RedNet for images with another number of channels'
        )
        # The checkpoint may have more stages than the backbone.
        absent = [f'layer{i}.' for i in range(1, 5) if not hasattr(module, f'layer{i}')]
        return check(module, widen(module, state_dict, path), path, remedy, [*absent, *self.may_differ])

    def _find_prefix(self, module: nn.Module, loaded: dict, path: str) -> str:
        if self.prefix is not None:
            # `load` has removed DataParallel's prefix.
            return f'{self.prefix.removesuffix(".")}.'.removeprefix('module.') if self.prefix else ''
        # A parameter of the first stage: the stem may differ.
        mark = next((name for name in module.state_dict() if name.startswith('layer1.')), '')
        found = {name.removesuffix(mark) for name in loaded if mark and f'.{name}'.endswith(f'.{mark}')}
        if len(found) > 1:
            raise ValueError(
                f'{path} holds several backbones: set prefix in init_cfg to that of one of them, from {sorted(found)}'
            )
        return found.pop() if found else ''

    def __call__(self, module: nn.Module) -> None:
        """Loads the checkpoint into a backbone. If it does not fit, nothing is loaded."""
        module.load_state_dict(self.read(module), strict=False)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())
