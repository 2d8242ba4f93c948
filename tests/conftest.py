import pytest

pytest.register_assert_rewrite('helpers')


@pytest.fixture(autouse=True)
def default_scope(request):
    """Gives the tests of a module that names a toolbox in SCOPE what a config of that toolbox has."""
    if scope := getattr(request.module, 'SCOPE', None):
        from mmengine.registry import init_default_scope

        init_default_scope(scope)


@pytest.fixture
def in_python():
    """Has kernels in Python answer torch's dispatcher on the CPU too, by the table of backends, not native code."""
    from torch import library

    from mmrednet.ops.fused import FusedInvolution2d
    from mmrednet.ops.involution import GradInput, GradKernel, Involution2d

    kernels = library.Library('mmrednet', 'IMPL')
    for operator in (Involution2d, GradInput, GradKernel, FusedInvolution2d):
        kernels.impl(operator.schema.partition('(')[0], operator.compute, 'CPU')
    yield
    kernels._destroy()


def pytest_addoption(parser):
    parser.addoption('--run-slow', action='store_true', help='run the tests marked slow too')


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes minutes; skipped without --run-slow')


def pytest_collection_modifyitems(config, items):
    if not config.getoption('--run-slow'):
        for item in items:
            if item.get_closest_marker('slow'):
                item.add_marker(pytest.mark.skip(reason='slow: --run-slow runs it'))
