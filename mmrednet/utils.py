"""The function that mmengine's ``hub.get_model('mmrednet::...')`` calls in a package."""


def register_all_modules(init_default_scope: bool = True) -> None:
    """Registers everything of mmrednet that configs can name.

    Args:
        init_default_scope (bool): Not used. mmengine passes it, but our configs set the scope of their toolbox.
    """
    from . import engine, models  # noqa: F401
