"""The names and colours of a model's classes."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from mmengine.config import Config
from torch import nn

from ..errors import one_line
from ..toolboxes import find_metainfo


class Names(NamedTuple):
    """The classes of a model.

    Attributes:
        classes: Their names, by label.
        palette: Their colours, (R, G, B) from 0 to 255.
        note: What the user has to know about them, or ''.
    """

    classes: list[str]
    palette: list[tuple[int, int, int]]
    note: str = ''

    def of(self, label: int) -> str:
        """Returns the name of a label, or its number."""
        return self.classes[label] if label < len(self.classes) else str(label)


def find_names(checkpoint_meta: Mapping, config: Config, model: nn.Module) -> Names:
    """Finds the names of a model's classes.

    They are the checkpoint's ``dataset_meta``, as for the toolboxes' inferencers. If it has none, or not as many as the
    model has classes, they are those of the config's test data set. Else numbers stand for them.
    """
    sizes = count_classes(model)
    tried = []
    meta = checkpoint_meta.get('dataset_meta') or {}
    for source in ('the checkpoint', "the config's data set"):
        try:
            meta = meta if source == 'the checkpoint' else find_metainfo(config)
        except Exception as error:  # a data set can raise anything
            tried.append(f'{source} cannot be built ({one_line(error)})')
            continue
        # A text is one class, not its letters.
        classes = meta.get('classes')
        classes = [classes] if isinstance(classes, str) else [str(name) for name in classes or ()]
        if classes and (not sizes or len(classes) in sizes):
            return Names([printable(name) for name in classes], to_colours(meta.get('palette'), len(classes)))
        tried.append(f'{source} has {len(classes) or "no"} names')
    size = max(sizes, default=0)
    note = f'the model has {size or "an unknown number of"} class{"es" * (size != 1)}, but {" and ".join(tried)}'
    return Names([str(label) for label in range(size)], to_colours(None, size), f'{note}: numbers stand for the names')


def count_classes(model: nn.Module) -> set[int]:
    """Returns the numbers of classes of a model's heads.

    Proposals have one class, and ``num_classes`` of the data preprocessor is for mixed labels in training.
    """
    counts = set()
    for name, module in model.named_modules():
        count = getattr(module, 'num_classes', None)
        if isinstance(count, int) and count > 0 and not {'data_preprocessor', 'rpn_head'} & {*name.split('.')}:
            counts.add(count)
    return counts


def to_colours(palette, size: int) -> list[tuple[int, int, int]]:
    """Returns ``size`` colours: those of a palette that lists as many, else fixed random ones."""
    colours = None if palette is None or isinstance(palette, str) else np.array([*palette])
    if colours is None or colours.ndim != 2 or len(colours) < size:
        colours = np.random.RandomState(42).randint(0, 256, (size, 3))
    return [tuple(map(int, colour[:3])) for colour in colours[:size]]  # type: ignore[misc]


def printable(text: str) -> str:
    """Writes control characters as escapes, since a terminal would obey them."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape', 'surrogatepass').decode() for c in text)
