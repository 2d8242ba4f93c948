"""A toy backend runs the operator's whole grid, and shows how a backend is chosen."""

import sys
import warnings
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from helpers import CASES, TOLERANCE, check, make_arguments, make_fused_arguments, run

from mmrednet.ops import backends, fused_involution2d, involution2d
from mmrednet.ops.backends import Row

OPERATORS = torch.ops.mmrednet


class Toy:
    """A backend in 20 lines: all windows beside each other, in float64."""

    def load(self):
        pass

    def involution2d(self, out, input, kernel, *geometry):
        windows = self.windows(input, kernel.shape, *geometry)
        out.copy_((windows * self.inside(kernel, input, *geometry)).sum((3, 4)).view_as(out))

    def grad_input(self, out, grad_output, kernel, stride, padding, dilation):
        grad = grad_output.double().flatten(2).unflatten(1, (kernel.shape[1], -1))[:, :, :, None, None]
        windows = (grad * self.inside(kernel, out, stride, padding, dilation)).flatten(1, 4)
        out.copy_(F.fold(windows, out.shape[2:], kernel.shape[2:4], dilation, padding, stride))

    def grad_kernel(self, out, grad_output, input, *geometry):
        grad = grad_output.double().flatten(2).unflatten(1, (out.shape[1], -1))[:, :, :, None, None]
        out.copy_((grad * self.windows(input, out.shape, *geometry)).sum(2).view_as(out))

    def windows(self, input, kernel_shape, stride, padding, dilation):
        groups, *size = kernel_shape[1:4]
        return F.unfold(input.double(), size, dilation, padding, stride).unflatten(1, (groups, -1, *size))

    def inside(self, kernel, input, *geometry):
        windows = self.windows(torch.ones_like(input[:1, :1]), (1, 1, *kernel.shape[2:4]), *geometry)
        return torch.where(windows > 0, kernel.double().flatten(4).unsqueeze(2), 0)


class Broken(Toy):
    def __init__(self, error):
        self.error = error

    def load(self):
        raise self.error


class Watched:
    """Records the attributes of a backend that are used."""

    def __init__(self, backend):
        self.backend, self.calls = backend, []

    def __getattr__(self, name):
        attribute = getattr(self.backend, name)
        self.calls.append(name)
        return attribute


@pytest.fixture
def install(monkeypatch, in_python):
    """Puts a row for a backend before or after the others; nothing that was found before is remembered."""

    def install(toy, devices=('cpu',), last=False):
        monkeypatch.setitem(sys.modules, 'toy', watched := toy and Watched(toy))
        row, rows = {'toy': Row('toy', devices)}, backends.TABLE
        monkeypatch.setattr(backends, 'TABLE', {**rows, **row} if last else {**row, **rows})
        monkeypatch.setattr(backends, '_load', cache(backends._load.__wrapped__))
        return watched

    return install


# The toy takes 8 s for the second case, an image of 56x56 pixels.
@pytest.mark.parametrize('case', [CASES[0], pytest.param(CASES[1], marks=pytest.mark.full), *CASES[2:]], ids=str)
def test_a_toy_runs_the_grid(case, install):
    toy = install(Toy())
    for i, dtype in enumerate(TOLERANCE):
        for operator, make in ((involution2d, make_arguments), (fused_involution2d, make_fused_arguments)):
            arguments = make(*case, dtype, 'cpu', channels_last=i % 2 == 0)
            check(operator, run(operator, *arguments), *arguments)
    if case[0][0] == 0:
        assert toy.calls == []
    else:
        assert {name: toy.calls.count(name) for name in toy.calls} == dict(
            load=1, involution2d=8, grad_input=8, grad_kernel=8
        )


X, H = torch.rand(1, 4, 5, 6), torch.rand(1, 2, 3, 3, 5, 6)
GEOMETRY = [1, 1], [1, 1], [1, 1]


def test_the_first_row_for_the_device_is_chosen(install):
    toy = install(Toy())
    involution2d(X, H)
    assert toy.calls == ['load', 'involution2d']


@pytest.mark.parametrize('options', (dict(last=True), dict(devices=('mps',))), ids=str)
def test_other_rows_are_not_even_loaded(options, install):
    toy = install(Toy(), **options)
    involution2d(X, H)
    assert toy.calls == []


def test_a_row_without_devices_is_for_all(install):
    toy = install(Toy(), devices=())
    involution2d(X, H)
    assert toy.calls == ['load', 'involution2d']


def test_a_named_backend_is_loaded_once(install):
    toy = install(Toy(), last=True)
    for _ in range(2):
        OPERATORS.involution2d(X, H, *GEOMETRY, 'toy')
    assert toy.calls == ['load', 'involution2d', 'involution2d']


ERRORS = [error('no toys here: buy one') for error in (ImportError, ModuleNotFoundError, OSError, RuntimeError)]


@pytest.mark.parametrize('error', ERRORS, ids=lambda error: type(error).__name__)
def test_a_backend_that_cannot_load_leaves_the_work_to_the_next(error, install):
    install(Broken(error))
    following = next(name for name, row in backends.TABLE.items() if name != 'toy' and 'cpu' in row.devices)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        outputs = [involution2d(X, H) for _ in range(2)]
    (warning,) = caught
    assert "'toy'" in str(warning.message) and 'buy one' in str(warning.message)
    assert f'{following!r} is used' in str(warning.message)
    for output in outputs:
        torch.testing.assert_close(output, involution2d(X, H, backend='reference'))


def test_a_backend_whose_module_is_missing_leaves_the_work_to_the_next(install):
    install(None)
    with pytest.warns(UserWarning, match="backend 'toy' .* cannot be used: .*toy"):
        output = involution2d(X, H)
    torch.testing.assert_close(output, involution2d(X, H, backend='reference'))


@pytest.mark.parametrize('error', ERRORS, ids=lambda error: type(error).__name__)
def test_a_named_backend_that_cannot_load_is_an_error(error, install):
    install(Broken(error))
    with pytest.raises(RuntimeError, match="backend 'toy' .* cannot be used: no toys here: buy one"):
        OPERATORS.involution2d(X, H, *GEOMETRY, 'toy')


def test_if_none_can_load_the_error_is_that_of_the_best(install, monkeypatch):
    install(Broken(OSError('no toys here: buy one')))
    monkeypatch.setattr(backends, 'TABLE', {'toy': backends.TABLE['toy'], 'other': Row('no_such_toy')})
    with pytest.raises(RuntimeError, match="backend 'toy' .* buy one"):
        involution2d(X, H)


def test_a_fault_in_a_backend_is_not_taken_for_its_absence(install):
    install(Broken(TypeError('a bug')))
    with pytest.raises(TypeError, match='a bug'):
        involution2d(X, H)


def test_a_named_backend_for_another_device_is_an_error(install):
    install(Toy(), devices=('mps',))
    with pytest.raises(ValueError, match="backend 'toy' is for .*mps.* but input is on cpu"):
        OPERATORS.involution2d(X, H, *GEOMETRY, 'toy')


def test_an_unknown_name_is_an_error_that_lists_the_known(install):
    install(Toy())
    with pytest.raises(ValueError, match="backend must be .*'toy'.* but is 'tpu'"):
        OPERATORS.involution2d(X, H, *GEOMETRY, 'tpu')
