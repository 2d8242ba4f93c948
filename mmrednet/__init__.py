"""Involution (CVPR 2021) for OpenMMLab. ``mmrednet.ops`` and ``mmrednet.layers`` need torch alone."""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

__version__ = '0.2.0'


class _BeforeInferencers(MetaPathFinder):
    """Imports ``mmrednet.registry`` right after ``mmengine.infer`` is imported.

    mmengine's inferencers read a checkpoint before they build the model. Without this, the types in the checkpoint
    would not yet be declared as safe, and loading would stop with "Weights only load failed". Importing mmrednet itself
    does not import mmengine.
    """

    def find_spec(self, name, path=None, target=None):
        if name != 'mmengine.infer':
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_import(module) -> None:
            execute(module)
            import_module('mmrednet.registry')

        spec.loader.exec_module = execute_and_import
        return spec


if 'mmengine.infer' in sys.modules:
    import_module('mmrednet.registry')
else:
    sys.meta_path.insert(0, _BeforeInferencers())
