"""The names and colours of a model's classes."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from mmengine.config import Config
from torch import nn

from ..errors import one_line
from ..toolboxes import find_metainfo


class Names(NamedTuple):
    """The names of a model's classes by label, their colours (R, G, B) from 0 to 255, and a note for the user or ''."""

    classes: list[str]
    palette: list[tuple[int, int, int]]
    note: str = ''

    def of(self, label: int) -> str:
        """Returns the name of a label, or its number."""
        return self.classes[label] if label < len(self.classes) else str(label)


def find_names(checkpoint_meta: Mapping, config: Config, model: nn.Module) -> Names:
    """Finds the names of a model's classes in the checkpoint's ``dataset_meta``, as the toolboxes' inferencers do.

    If it does not have one name for each class, the names are those of the config's test data set, or else numbers.
    """
    sizes = count_classes(model)
    tried: list[str] = []
    for source in ('the checkpoint', "the config's data set"):
        try:
            meta = find_metainfo(config) if tried else checkpoint_meta.get('dataset_meta') or {}
        except Exception as error:  # a data set can raise anything
            tried.append(f'{source} cannot be built ({one_line(error)})')
            continue
        classes = meta.get('classes') or ()
        classes = [classes] if isinstance(classes, str) else [str(name) for name in classes]
        if classes and (not sizes or len(classes) in sizes):
            return Names(classes, _to_colours(meta.get('palette'), len(classes)))
        tried.append(f'{source} has {len(classes) or "no"} names')
    size = max(sizes, default=0)
    note = f'the model has {size or "an unknown number of"} class{"es" * (size != 1)}, but {" and ".join(tried)}'
    return Names([str(label) for label in range(size)], _to_colours(None, size), f'{note}: numbers stand for the names')


def count_classes(model: nn.Module) -> set[int]:
    """Returns the numbers of classes of a model's heads."""
    # Proposals have one class, and the data preprocessor's `num_classes` is for mixed labels in training.
    return {
        module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, 'num_classes', None), int)
        and not {'data_preprocessor', 'rpn_head'} & {*name.split('.')}
    } - {0}


def _to_colours(palette, size: int) -> list[tuple[int, int, int]]:
    """Returns ``size`` colours: those of a palette if it has enough, else fixed random ones."""
    colours = None if palette is None or isinstance(palette, str) else np.array([*palette])
    if colours is None or colours.ndim != 2 or len(colours) < size:
        colours = np.random.RandomState(42).randint(0, 256, (size, 3))
    return [tuple(map(int, colour[:3])) for colour in colours[:size]]  # type: ignore[misc]
