"""Products of weights with tokens of the CPU in float32: the operators of `float32_product.cpp`, for graphs."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.ops.shared_cell import shared_cell
from gm.runtime import backend, onednn


def project() -> nn.Cell | None:
    """Return the Cell (x [C, …], weight [outputs, C, …], bias [outputs] or None) → [outputs, …] in the shape of x.

    None where the operators are not there.
    """
    library = onednn.library()
    return shared_cell(_Projection, library) if library and not backend.on_ascend() else None


def _operator(library: str, name: str, out_shape: Any) -> ops.Custom:
    """Return the operator `name` of the library; for one name MindSpore keeps one `out_shape`."""
    return ops.Custom(f"{library}:{name}", out_shape=out_shape, out_dtype=ms.float32, func_type="aot")


def _shape_projected(x: Any, weight: Any, bias: Any = None) -> list[int]:
    return [weight[0], *x[1:]]


def _shape_projected_back(dout: Any, weight: Any) -> list[int]:
    return [weight[1], *dout[1:]]


class _Projection(nn.Cell):
    def __init__(self, library: str) -> None:
        super().__init__()
        self.without_bias = shared_cell(_ProjectWithoutBias, library)
        self.with_bias = shared_cell(_ProjectWithBias, library)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.without_bias(x, weight) if bias is None else self.with_bias(x, weight, bias)


# A graph that uses no gradient of weight and bias, which are frozen, does not compute them.


class _ProjectWithoutBias(nn.Cell):
    def __init__(self, library: str) -> None:
        super().__init__()
        self.forward = _operator(library, "project_float32", _shape_projected)
        self.backward = _operator(library, "project_float32_backward", _shape_projected_back)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.forward(x, weight)

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        return self.backward(dout, weight), _weight_gradient(x, weight, dout)


class _ProjectWithBias(nn.Cell):
    def __init__(self, library: str) -> None:
        super().__init__()
        self.forward = _operator(library, "project_float32", _shape_projected)
        self.backward = _operator(library, "project_float32_backward", _shape_projected_back)
        self.sum = ops.ReduceSum()  # not BiasAddGrad, which takes no single token

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.forward(x, weight, bias)

    def bprop(self, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        dbias = self.sum(dout.reshape((dout.shape[0], -1)), 1)
        return self.backward(dout, weight), _weight_gradient(x, weight, dout), dbias


def _weight_gradient(x: Tensor, weight: Tensor, dout: Tensor) -> Tensor:
    gradient = ops.MatMul(transpose_b=True)(dout.reshape((dout.shape[0], -1)), x.reshape((x.shape[0], -1)))
    return gradient.reshape(weight.shape)
