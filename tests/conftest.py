"""Fixtures and options of all tests.

There are three tiers. A plain run takes minutes and covers every room. ``--all`` adds the tests marked ``full``: more
cases of what a plain run tests already. ``--run-slow`` adds the tests marked ``slow``: each takes minutes or needs
programs that the set-up does not install.
"""

import pytest

pytest.register_assert_rewrite('helpers', 'oracle')


@pytest.fixture(autouse=True)
def default_scope(request):
    """Sets the default scope to the toolbox that the test module names in SCOPE."""
    if scope := getattr(request.module, 'SCOPE', None):
        from mmengine.registry import init_default_scope

        init_default_scope(scope)


@pytest.fixture
def in_float64():
    """Sets the default dtype to float64, and the seed."""
    import torch

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def in_python():
    """Runs the operators on the CPU through the table of backends in Python, instead of native code."""
    from torch import library

    from mmrednet.ops.fused import FusedInvolution2d
    from mmrednet.ops.involution import GradInput, GradKernel, Involution2d

    kernels = library.Library('mmrednet', 'IMPL')
    for operator in (Involution2d, GradInput, GradKernel, FusedInvolution2d):
        kernels.impl(operator.schema.partition('(')[0], operator.compute, 'CPU')
    yield
    kernels._destroy()


def pytest_addoption(parser):
    parser.addoption('--all', action='store_true', help='run the tests marked full, too')
    parser.addoption('--run-slow', action='store_true', help='run the tests marked slow, too')
    parser.addoption('--cases', type=int, default=100, help='random cases for each backend (default: %(default)s)')


TIERS = {'full': '--all', 'slow': '--run-slow'}


def pytest_configure(config):
    config.addinivalue_line('markers', 'full: more cases of what other tests cover; only --all runs them')
    config.addinivalue_line('markers', 'slow: takes minutes or needs other programs; only --run-slow runs it')


def pytest_collection_modifyitems(config, items):
    markers = [marker for marker, option in TIERS.items() if not config.getoption(option)]
    deselected = {item for item in items if any(map(item.get_closest_marker, markers))}
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if item not in deselected]
