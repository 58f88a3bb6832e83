"""GELU, exact."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.ops.shared_cell import shared_cell
from gm.runtime import backend

# GELU is x times the sigmoid of x P(x²), within 1e-7 for |x| up to 6; beyond, P(36) does. P's coefficients are a
# minimax fit of that error and of a third of the derivative's, 3e-7.
_P = (1.5957699, 7.2665023e-2, -6.3676522e-5, -1.1126963e-4, 8.0500163e-6, -2.7407193e-7, 3.7779985e-9)
_SLOPE = tuple((2 * k + 1) * p for k, p in enumerate(_P))  # of x P(x²), as a polynomial of x²
_LARGEST_SQUARE = 36.0


def gelu() -> nn.Cell:
    """Return the Cell x → x Φ(x), the exact GELU (Hendrycks and Gimpel, 2016), Φ being the normal distribution."""
    return _NativeGelu() if backend.on_ascend() else shared_cell(_PolynomialGelu)


class _NativeGelu(nn.Cell):
    def construct(self, x: Tensor) -> Tensor:
        return ops.gelu(x, approximate="none")


class _PolynomialGelu(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.cast, self.smaller, self.sigmoid = ops.Cast(), ops.Minimum(), ops.Sigmoid()

    def construct(self, x: Tensor) -> Tensor:
        y = self.cast(x, ms.float32)
        square = self.smaller(y * y, _LARGEST_SQUARE)
        return self.cast(y * self.sigmoid(y * _polynomial(_P, square)), x.dtype)

    def bprop(self, x: Tensor, out: Tensor, slope: Tensor) -> tuple[Tensor]:
        # By hand, so that nothing but x is kept for the backward pass.
        y = self.cast(x, ms.float32)
        square = self.smaller(y * y, _LARGEST_SQUARE)
        share = self.sigmoid(y * _polynomial(_P, square))
        steepness = share + y * share * (1.0 - share) * _polynomial(_SLOPE, square)
        return (self.cast(self.cast(slope, ms.float32) * steepness, x.dtype),)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = coefficients[6] * x + coefficients[5]
    for k in (4, 3, 2, 1, 0):
        value = value * x + coefficients[k]
    return value
