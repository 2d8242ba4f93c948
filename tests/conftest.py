import pytest

pytest.register_assert_rewrite('helpers')


@pytest.fixture(autouse=True)
def default_scope(request):
    """Gives the tests of a module that names a toolbox in SCOPE what a config of that toolbox has."""
    if scope := getattr(request.module, 'SCOPE', None):
        from mmengine.registry import init_default_scope

        init_default_scope(scope)
