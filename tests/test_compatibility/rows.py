"""A row of docs/compatibility.md: something that users do with a backbone, done with ResNet and with RedNet."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from helpers import registry
from mmengine.registry import DefaultScope, init_default_scope

# A config with RedNet imports this. Its changes to other packages then hold for ResNet too, whichever row is first.
import mmrednet.registry  # noqa: F401

# Few channels, so that a row takes a fraction of a second. The code is the same for any number of channels.
NARROW = dict(depth=50, base_channels=16, stem_channels=32)
# The stem and one stage, for slow features.
SHALLOW = dict(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
# Two stages, for training.
SHORT = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
TYPES = {'ResNet-50': 'ResNet', 'RedNet-50': 'mmrednet.RedNet'}


class NotApplicable(Exception):
    """This machine lacks what the row needs."""


class Network:
    """The argument of a row's code. It is the same for both networks except for the backbone's type.

    Args:
        name (str): A key of ``TYPES``.
        folder (Path): An empty folder for files.
        data (Path): The demo's rendered images.
    """

    def __init__(self, name: str, folder: Path, data: Path) -> None:
        self.name, self.folder, self.data = name, folder, data

    def config(self, **arguments) -> dict:
        """Returns the backbone's entry in a model's config."""
        return dict(type=TYPES[self.name], **{**NARROW, **arguments})

    def build(self, training: bool = False, scope: str = 'mmpretrain', **arguments) -> torch.nn.Module:
        """Returns the backbone alone. Its blocks do not start as identities."""
        models = registry(scope)
        torch.manual_seed(0)
        model = models.build(self.config(**{'zero_init_residual': False, **arguments}))
        # The toolboxes' own train() returns nothing.
        model.train(training)
        return model

    def image(self, *size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Returns noise, by default two images of 64x64."""
        return torch.rand(size or (2, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=dtype)


class Row(NamedTuple):
    """A feature, and the code that uses it. The code returns None or a remark, and raises where the feature fails."""

    section: str
    name: str
    feature: str
    use: Callable[[Network], str | None]
    tier: str  # 'full' or 'slow', a marker of the tests, or ''

    def outcome(self, network: Network) -> str:
        """Returns the network's cell on the page."""
        scope = DefaultScope.get_current_instance()
        try:
            remark = self.use(network)
        except NotApplicable as reason:
            return f'not applicable: {reason}'
        except Exception as error:
            return f'raises: `{_words(error, network)}`'
        finally:
            if scope is not None:
                init_default_scope(scope.scope_name)
        return f'works: {remark}' if remark else 'works'


ROWS: list[Row] = []


def rows_of(section: str, tier: str = '') -> Callable:
    """Returns a decorator that makes a row of a function. Its docstring is the feature's name on the page."""

    def row(use: Callable[[Network], str | None]) -> Callable:
        ROWS.append(Row(section, use.__name__, ' '.join((use.__doc__ or '').split()), use, tier))
        return use

    return row


def _words(error: Exception, network: Network) -> str:
    """Returns the first line of an error, without the parts that differ from run to run."""
    text = re.sub(r'\x1b\[[0-9;]*m', '', str(error))
    text = next((line.strip() for line in text.splitlines() if line.strip()), '')
    text = re.sub(
        r'0x[0-9a-f]+', '0x...', text.replace(str(network.folder), 'FOLDER').replace(str(network.data), 'DATA')
    )
    text = re.sub(r'/\S*/site-packages/', '', text).replace('|', '/').replace('`', "'")
    return f'{type(error).__name__}: {text[:200]}'.removesuffix(': ')
