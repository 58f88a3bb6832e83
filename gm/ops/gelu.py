"""Exact GELU (Hendrycks and Gimpel, 2016)."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.ops import ascend, fused, layout
from gm.ops.shared_cell import shared_cell
from gm.runtime import backend

# GELU(x) = x · σ(x P(x²)), P being a polynomial: within 1e-7 for |x| up to 6, and beyond with P(36). The coefficients
# are a minimax fit of that error and of a third of the derivative's error, 3e-7.
_P = (1.5957699, 7.2665023e-2, -6.3676522e-5, -1.1126963e-4, 8.0500163e-6, -2.7407193e-7, 3.7779985e-9)
# Coefficients of Q with d/dx x P(x²) = Q(x²).
_Q = tuple((2 * k + 1) * p for k, p in enumerate(_P))
_MAX_SQUARE = 36.0


def gelu() -> nn.Cell:
    """Return the Cell x → x Φ(x), Φ being the cumulative distribution function of the normal distribution."""
    return fused.gelu((_P, _Q)) or shared_cell(ascend.Gelu if backend.on_ascend() else _PolynomialGelu)


def geglu() -> nn.Cell:
    """Return the Cell from a sequence (`gm.ops.layout`) to the first half of its channels times GELU of the second."""
    return fused.geglu((_P, _Q)) or shared_cell(_GEGLU, gelu())


class _GEGLU(nn.Cell):
    def __init__(self, gelu: nn.Cell) -> None:
        super().__init__()
        self.gelu = gelu

    def construct(self, x: Tensor) -> Tensor:
        value, gate = layout.split_channels(x, 2)
        return value * self.gelu(gate)


class _PolynomialGelu(nn.Cell):
    """GELU for the CPU backend, composed of fast elementwise operators."""

    def __init__(self) -> None:
        super().__init__()
        self.cast = ops.Cast()
        self.minimum = ops.Minimum()
        self.sigmoid = ops.Sigmoid()

    def construct(self, x: Tensor) -> Tensor:
        y = self.cast(x, ms.float32)
        square = self.minimum(y * y, _MAX_SQUARE)
        return self.cast(y * self.sigmoid(y * _polynomial(_P, square)), x.dtype)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        # d/dx x σ(u) = σ(u) + x σ(u) (1 - σ(u)) u' with u = x P(x²), u' = Q(x²). Derived by MindSpore, the backward
        # pass would store every intermediate value of the polynomial; this one stores x alone.
        y = self.cast(x, ms.float32)
        square = self.minimum(y * y, _MAX_SQUARE)
        sigma = self.sigmoid(y * _polynomial(_P, square))
        derivative = sigma + y * sigma * (1.0 - sigma) * _polynomial(_Q, square)
        return (self.cast(self.cast(dout, ms.float32) * derivative, x.dtype),)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Evaluate a polynomial of degree 6 by Horner's method."""
    value = coefficients[6] * x + coefficients[5]
    for k in (4, 3, 2, 1, 0):
        value = value * x + coefficients[k]
    return value
