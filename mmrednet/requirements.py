"""Checks for the packages that the distribution cannot require, since two families provide the same import names."""

from importlib import import_module

from torch.torch_version import TorchVersion


def require(package: str, minimum: str) -> None:
    """Raises ImportError, with the command that mends it, unless ``package`` can be imported and is recent enough."""
    mend = (
        "install OpenMMLab's with `pip install 'mmrednet[openmmlab]'` or the OneDL forks with "
        "`pip install 'mmrednet[onedl]'`; from a checkout, `bash tools/setup.sh` installs a set that works together"
    )
    try:
        version = TorchVersion(import_module(package).__version__)
    except ImportError as error:
        raise ImportError(f'mmrednet needs {package}>={minimum}, which cannot be imported ({error}): {mend}') from error
    if version < minimum:
        raise ImportError(f'mmrednet needs {package}>={minimum}, but {version} is installed: {mend}')
