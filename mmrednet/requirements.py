"""The packages that our distribution cannot require: OpenMMLab's and OneDL's packages have the same import names."""

from importlib import import_module
from typing import NamedTuple

# The oldest versions that mmrednet works with.
MINIMUM = {
    'torch': '2.6',
    'mmengine': '0.10.7',
    'mmcv': '2.1',
    'mmpretrain': '1.2',
    'mmdet': '3.3',
    'mmseg': '1.2.2',
}


class Toolbox(NamedTuple):
    """The module that extends a toolbox, and the scopes whose models are built on that toolbox."""

    module: str
    scopes: tuple[str, ...]


# The first installed toolbox is used for all scopes that are not in this table.
TOOLBOXES = {
    'mmdet': Toolbox('mmrednet.models.detection', ('mmdet', 'mmdet3d', 'mmrotate', 'mmyolo')),
    'mmseg': Toolbox('mmrednet.models.segmentation', ('mmseg',)),
    'mmpretrain': Toolbox('mmrednet.models.classification', ()),  # classifiers have no FPN
}


def require(package: str) -> None:
    """Checks that a package can be imported and is recent enough.

    Raises:
        ImportError: It cannot be imported, or is too old. The message names the command that installs it.
    """
    from torch.torch_version import TorchVersion

    minimum = MINIMUM[package]
    remedy = (
        "in mmrednet's folder `bash tools/setup.sh` installs a set of versions that are tested together, `pip install "
        "'.[openmmlab]'` installs OpenMMLab's packages, and `pip install '.[onedl]'` the OneDL forks"
    )
    if package == 'torch':
        remedy = f"pip install 'torch>={minimum}'"
    try:
        version = TorchVersion(import_module(package).__version__)
    except Exception as error:  # a toolbox asserts the versions of others when it is imported
        raise ImportError(
            f'mmrednet needs {package}>={minimum}, which cannot be imported ({error}): {remedy}'
        ) from error
    if version < minimum:
        raise ImportError(f'mmrednet needs {package}>={minimum}, but {version} is installed: {remedy}')
