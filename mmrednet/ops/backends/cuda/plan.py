"""Plans the launches of the CUDA kernels. It needs neither a GPU nor CuPy.

Each family of kernels has a .cu file, and a .py file of the same name that plans its launches.
"""

from functools import lru_cache

from .. import Pair
from . import bands, narrow, pixels, tiled
from .launch import Device, Launch
from .problem import Layout, Problem

FAMILIES = (bands, pixels, narrow, tiled)  # the first that can solve a problem is launched


@lru_cache(maxsize=1 << 12)  # a plan takes 2.7 KB and 0.4 ms; a network repeats the same few problems
def plan_launch(
    function: str,
    x: Layout,
    k: Layout,
    y: Layout,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    device: Device = Device(),  # noqa: B008
) -> Launch | None:
    """Plans a launch for a :class:`Problem`, or returns None if shared memory cannot hold what one thread reads."""
    problem = Problem(function, x, k, y, stride, padding, dilation)
    plans = (family.plan(problem, device) for family in FAMILIES)
    return next((launch for launch in plans if launch), None)
