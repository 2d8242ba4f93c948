"""Plans the launches of the CUDA kernels. It needs neither a GPU nor CuPy.

Each family of kernels is a .cu file and a .py file of the same name, which plans its launches.
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
    """Plans a launch, or returns None where shared memory cannot hold what one thread reads.

    Args:
        function (str): 'forward', 'grad_input' or 'grad_kernel'.
        x (Layout): The input or its gradient, (N, C, H, W).
        k (Layout): The kernel or its gradient, (N, G, Kh, Kw, Ho, Wo).
        y (Layout): The output or its gradient, (N, C, Ho, Wo).
        stride (tuple): Vertical and horizontal stride.
        padding (tuple): Vertical and horizontal padding.
        dilation (tuple): Vertical and horizontal dilation.
        device (Device): The limits of the GPU.
    """
    problem = Problem(function, x, k, y, stride, padding, dilation)
    plans = (family.plan(problem, device) for family in FAMILIES)
    return next((launch for launch in plans if launch), None)
