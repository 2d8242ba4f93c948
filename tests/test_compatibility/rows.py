"""What a row of docs/compatibility.md is: what a user does with a backbone, done with ResNet and with RedNet."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from helpers import registry
from mmengine.registry import DefaultScope, init_default_scope

# As a config with RedNet does: what it changes in other packages helps ResNet too, whichever row is first.
import mmrednet.registry  # noqa: F401

# Narrow, so that a row takes a fraction of a second: the code is that of the depth, whatever the channels.
NARROW = dict(depth=50, base_channels=16, stem_channels=32)
# The stem and one stage, for what takes long.
SHALLOW = dict(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
# Two stages, for what trains.
SHORT = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
TYPES = {'ResNet-50': 'ResNet', 'RedNet-50': 'mmrednet.RedNet'}


class NotApplicable(Exception):
    """This machine has not what the row is about."""


class Network:
    """What the code of a row is given: the same for both networks but for the backbone's type.

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
        """Returns the backbone alone, whose blocks do not start as identities."""
        models = registry(scope)
        torch.manual_seed(0)
        model = models.build(self.config(**arguments))
        # The toolboxes' own train() returns nothing.
        model.train(training)
        return model

    def image(self, *size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Returns noise, by default two images of 64x64."""
        return torch.rand(size or (2, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=dtype)


class Row(NamedTuple):
    """A feature, and the code that uses it: it returns nothing or a remark, and raises where the feature refuses."""

    section: str
    feature: str
    use: Callable[[Network], str | None]
    slow: bool

    def outcome(self, network: Network) -> str:
        """Returns what the page says of the network."""
        scope = DefaultScope.get_current_instance()
        try:
            remark = self.use(network)
        except NotApplicable as reason:
            return f'not applicable: {reason}'
        except Exception as error:
            return f'refuses: `{_words(error, network)}`'
        finally:
            if scope is not None:
                init_default_scope(scope.scope_name)
        return f'works: {remark}' if remark else 'works'


ROWS: list[Row] = []


def rows_of(section: str, slow: bool = False) -> Callable:
    """Returns a decorator that makes a row of a function, whose docstring is the feature's name on the page."""

    def row(use: Callable[[Network], str | None]) -> Callable:
        ROWS.append(Row(section, ' '.join((use.__doc__ or '').split()), use, slow))
        return use

    return row


def _words(error: Exception, network: Network) -> str:
    """Returns the first line of an error without what differs from run to run."""
    text = re.sub(r'\x1b\[[0-9;]*m', '', str(error))
    text = next((line.strip() for line in text.splitlines() if line.strip()), '')
    text = re.sub(
        r'0x[0-9a-f]+', '0x...', text.replace(str(network.folder), 'FOLDER').replace(str(network.data), 'DATA')
    )
    text = re.sub(r'/\S*/site-packages/', '', text).replace('|', '/').replace('`', "'")
    return f'{type(error).__name__}: {text[:200]}'.removesuffix(': ')
