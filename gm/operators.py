"""Operators that MindSpore's CPU backend computes slowly, said in terms of those that it computes fast.

Each has the native operator's name and equals it in value and gradient; on Ascend it is the native operator.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops

from gm import backend

# GELU is x times the sigmoid of x P(x²), within 1e-7 for |x| up to 6; beyond, P(36) does. P's coefficients are a
# minimax fit of that error and of a third of the derivative's, 3e-7.
_GELU = (1.5957699, 7.2665023e-2, -6.3676522e-5, -1.1126963e-4, 8.0500163e-6, -2.7407193e-7, 3.7779985e-9)


def gelu(x: Tensor) -> Tensor:
    """x Φ(x), the exact GELU (Hendrycks and Gimpel, 2016), Φ being the normal distribution function."""
    if backend.on_ascend():
        return ops.gelu(x, approximate="none")
    y = ops.cast(x, ms.float32)
    square = ops.minimum(y * y, 36.0)
    polynomial = _GELU[6] * square + _GELU[5]
    for k in (4, 3, 2, 1, 0):
        polynomial = polynomial * square + _GELU[k]
    return ops.cast(y * ops.sigmoid(y * polynomial), x.dtype)
