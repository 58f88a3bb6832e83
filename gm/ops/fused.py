"""Normalisations, GELU and a transpose of the CPU as operators of `fused.cpp`, one each and one for its gradient.

They compute in float32; x may have any precision, which the result has, too. They replace compositions of MindSpore's
operators (`gm.ops.norm`, `gm.ops.gelu`, `gm.ops.layout`) where the library of `gm.runtime.onednn` is loaded. Every
function returns None where it is not, and on Ascend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gm.ops.shared_cell import shared_cell
from gm.runtime import backend, onednn

Coefficients = tuple[tuple[float, ...], tuple[float, ...]]  # of the polynomials P and Q of `gm.ops.gelu`


def layer_norm(epsilon: float) -> nn.Cell | None:
    """Return the Cell (x [C, …], gamma [C], beta [C]) → x normalised over C."""
    return _cell(_Normalisation, "layer_norm", (epsilon,))


def group_norm(groups: int, epsilon: float, silu: bool) -> nn.Cell | None:
    """Return the Cell (x [N, C, H, W], gamma [C], beta [C]) → x normalised over each group, with `silu` SiLU of it."""
    return _cell(_Normalisation, "group_norm_silu" if silu else "group_norm", (groups, epsilon))


def gelu(coefficients: Coefficients) -> nn.Cell | None:
    """Return the Cell x → GELU of x."""
    return _cell(_Gelu, "gelu", _shape_same, coefficients)


def geglu(coefficients: Coefficients) -> nn.Cell | None:
    """Return the Cell x [2 C, …] → its first half times GELU of its second half."""
    return _cell(_Gelu, "geglu", _shape_half, coefficients)


def swap_leading_axes() -> nn.Cell | None:
    """Return the Cell x [A, B, L] → x [B, A, L], for float32 alone."""
    library = onednn.library()
    return shared_cell(_SwapLeadingAxes, library) if library and not backend.on_ascend() else None


def _cell(cell_type: Callable[..., nn.Cell], *arguments: Any) -> nn.Cell | None:
    library = onednn.library()
    if not library or backend.on_ascend():
        return None
    return shared_cell(_InFloat32, shared_cell(cell_type, library, *arguments))


class _InFloat32(nn.Cell):
    def __init__(self, operator: nn.Cell) -> None:
        super().__init__()
        self.operator = operator

    def construct(self, x: Tensor, *weights: Tensor) -> Tensor:
        return ops.cast(self.operator(ops.cast(x, ms.float32), *weights), x.dtype)


def _operator(library: str, name: str, out_shape: Callable[..., Any], results: int = 1) -> ops.Custom:
    """Return the operator `name` of the library; for one name MindSpore keeps one `out_shape`."""
    dtypes = ms.float32 if results == 1 else (ms.float32,) * results
    return ops.Custom(f"{library}:{name}", out_shape=out_shape, out_dtype=dtypes, func_type="aot")


def _shape_normalised(x: Any, gamma: Any, beta: Any, options: Any) -> Any:
    return x


def _shape_gradients(x: Any, gamma: Any, beta: Any, options: Any, dout: Any) -> Any:
    return x, gamma, beta


class _Normalisation(nn.Cell):
    """An operator (x, gamma, beta, options) → y and its gradient (x, gamma, beta, options, dout) → dx, dγ, dβ."""

    def __init__(self, library: str, name: str, options: tuple[float, ...]) -> None:
        super().__init__()
        self.options = Tensor(np.array(options, np.float32))
        self.forward = _operator(library, name, _shape_normalised)
        self.backward = _operator(library, f"{name}_backward", _shape_gradients, results=3)

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return self.forward(x, gamma, beta, self.options)

    def bprop(self, x: Tensor, gamma: Tensor, beta: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        return self.backward(x, gamma, beta, self.options, dout)


def _shape_swapped(x: Any) -> Any:
    return [x[1], x[0], x[2]]


class _SwapLeadingAxes(nn.Cell):
    def __init__(self, library: str) -> None:
        super().__init__()
        self.swap = _operator(library, "swap_leading_axes", _shape_swapped)

    def construct(self, x: Tensor) -> Tensor:
        return self.swap(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (self.swap(dout),)


def _shape_same(x: Any, coefficients: Any) -> Any:
    return x


def _shape_half(x: Any, coefficients: Any) -> Any:
    return [x[0] // 2, *x[1:]]


def _shape_of_x(x: Any, coefficients: Any, dout: Any) -> Any:
    return x


class _Gelu(nn.Cell):
    """An operator (x, coefficients) → y and its gradient (x, coefficients, dout) → dx."""

    def __init__(self, library: str, name: str, out_shape: Callable[..., Any], coefficients: Coefficients) -> None:
        super().__init__()
        self.coefficients = Tensor(np.array(coefficients, np.float32))
        self.forward = _operator(library, name, out_shape)
        self.backward = _operator(library, f"{name}_backward", _shape_of_x)

    def construct(self, x: Tensor) -> Tensor:
        return self.forward(x, self.coefficients)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (self.backward(x, self.coefficients, dout),)
