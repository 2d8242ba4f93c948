"""What mmengine's ``hub.get_model('mmrednet::...')`` asks of a package."""


def register_all_modules(init_default_scope: bool = True) -> None:
    """Registers all that configs name.

    Args:
        init_default_scope (bool): Taken for mmengine's sake: a config of ours has its toolbox's scope.
    """
    from . import engine, models  # noqa: F401
