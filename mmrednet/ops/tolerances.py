"""The largest rounding errors that results of the operators may have. The tests and ``gpu-report`` use them.

An error is measured relative to the sum of the absolute values of an element's terms, since rounding errors grow with
the terms and not with their sum. The unit u is half a unit in the last place: 2^-24 in float32 and 2^-53 in float64.
The error of a sum of K * K * C terms can exceed 1 u, so 17 u (float32) and 90 u (float64) are allowed. The 16-bit types
are accumulated in float32 and rounded once, so only that rounding is allowed: 2^-11 in float16 and 2^-8 in bfloat16.
"""

import torch

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float64: 1e-14}
FUSED = 3  # times TOLERANCE: the generated kernel is a sum that is rounded as well
SECOND_ORDER = 2  # times TOLERANCE: second derivatives are sums of results that are sums
