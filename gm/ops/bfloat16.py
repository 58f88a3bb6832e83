"""Products and convolutions of the CPU in bfloat16: the operators of `bfloat16.cpp`, with their gradients.

Weights are bfloat16, everything else is float32: the operators round factors to bfloat16, and sum in float32. The
gradient is that of the activations alone, since weights and biases are frozen. Every Cell here needs `available()`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.ops.shared_cell import shared_cell
from gm.runtime import backend, onednn
from gm.runtime.backend import DType


def available() -> bool:
    """Return whether the operators can be used; may be called when a network is constructed."""
    return onednn.has_bfloat16() and not backend.on_ascend()


def activation_dtype(dtype: DType) -> DType:
    """Return the dtype of the activations, biases and tables of a network with weights of `dtype`."""
    return ms.float32 if dtype == ms.bfloat16 and available() else dtype


def project() -> nn.Cell:
    """Return the Cell (x [C, …], weight [outputs, C, …], bias [outputs]) → [outputs, …] in the shape of x."""
    return shared_cell(_Project, onednn.library())


def project_without_bias() -> nn.Cell:
    """Return the Cell (x, weight) → the result of `project` without a bias."""
    return shared_cell(_ProjectWithoutBias, onednn.library())


def vector_product(dtype: DType) -> nn.Cell | None:
    """Return the Cell (x [N, C], weight [outputs, C]) → x Wᵀ for weights of `dtype`; None if it is not bfloat16."""
    return shared_cell(_ProjectVectors, onednn.library()) if dtype == ms.bfloat16 and available() else None


def convolution(stride: int) -> nn.Cell:
    """Return the Cell (x [N, C, H, W], weight [outputs, C, k, k], bias [outputs]) → [N, outputs, H', W'].

    k is odd, the padding k/2, rounded down, on all sides, and the stride 1 or 2.
    """
    return shared_cell(_Convolution if stride == 1 else _StridedConvolution, onednn.library())


def onednn_operator(library: str, name: str, out_shape: Callable[..., Any]) -> ops.Custom:
    """Return the operator `name` of the library.

    MindSpore keeps one `out_shape` for a name: another one for the same name has no effect. Gradient checkpointing
    keeps the operator's result: recomputed, one whose gradient does not read its input makes a cycle of the graph.
    """
    operator = ops.Custom(f"{library}:{name}", out_shape=out_shape, out_dtype=ms.float32, func_type="aot")
    operator.add_prim_attr("recompute", False)
    return operator


def shape_projected(x: Any, weight: Any, bias: Any = None) -> list[int]:
    """Return the shape of the product of a weight [outputs, C, …] with x [C, …]."""
    return [weight[0], *x[1:]]


def shape_projected_back(dout: Any, weight: Any) -> list[int]:
    """Return the shape of its gradient in x."""
    return [weight[1], *dout[1:]]


def _shape_vectors(x: Any, weight: Any) -> list[int]:
    return [x[0], weight[0]]


def _shape_vectors_back(dout: Any, weight: Any) -> list[int]:
    return [dout[0], weight[1]]


def _shape_convolved(x: Any, weight: Any, bias: Any) -> list[int]:
    return [x[0], weight[0], x[2], x[3]]


def _shape_convolved_back(dout: Any, weight: Any) -> list[int]:
    return [dout[0], weight[1], dout[2], dout[3]]


def _shape_halved(x: Any, weight: Any, bias: Any) -> list[int]:
    return [x[0], weight[0], (x[2] + 1) // 2, (x[3] + 1) // 2]


def _shape_doubled(dout: Any, weight: Any) -> list[int]:
    return [dout[0], weight[1], 2 * dout[2], 2 * dout[3]]


def _shape_doubled_odd_height(dout: Any, weight: Any) -> list[int]:
    return [dout[0], weight[1], 2 * dout[2] - 1, 2 * dout[3]]


def _shape_doubled_odd_width(dout: Any, weight: Any) -> list[int]:
    return [dout[0], weight[1], 2 * dout[2], 2 * dout[3] - 1]


def _shape_doubled_odd(dout: Any, weight: Any) -> list[int]:
    return [dout[0], weight[1], 2 * dout[2] - 1, 2 * dout[3] - 1]


class _Project(nn.Cell):
    def __init__(self, library: str) -> None:
        super().__init__()
        self.forward = onednn_operator(library, "project", shape_projected)
        self.backward = onednn_operator(library, "project_backward", shape_projected_back)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.forward(x, weight, bias)

    def bprop(self, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, None, None]:
        return self.backward(dout, weight), None, None


class _ProjectWithoutBias(nn.Cell):
    def __init__(self, library: str) -> None:
        super().__init__()
        self.forward = onednn_operator(library, "project", shape_projected)
        self.backward = onednn_operator(library, "project_backward", shape_projected_back)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.forward(x, weight)

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, None]:
        return self.backward(dout, weight), None


class _ProjectVectors(nn.Cell):
    def __init__(self, library: str) -> None:
        super().__init__()
        self.forward = onednn_operator(library, "project_vectors", _shape_vectors)
        self.backward = onednn_operator(library, "project_vectors_backward", _shape_vectors_back)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.forward(x, weight)

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, None]:
        return self.backward(dout, weight), None


class _Convolution(nn.Cell):
    def __init__(self, library: str) -> None:
        super().__init__()
        self.forward = onednn_operator(library, "convolution_1", _shape_convolved)
        self.backward = onednn_operator(library, "convolution_backward_1", _shape_convolved_back)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.forward(x, weight, bias)

    def bprop(self, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, None, None]:
        return self.backward(dout, weight), None, None


class _StridedConvolution(nn.Cell):
    """Convolution of stride 2. Whether x has odd sizes, its gradient's shape alone does not tell."""

    def __init__(self, library: str) -> None:
        super().__init__()
        name = "convolution_backward_2"
        self.forward = onednn_operator(library, "convolution_2", _shape_halved)
        self.backward = onednn_operator(library, name, _shape_doubled)
        self.backward_odd_height = onednn_operator(library, f"{name}_odd_height", _shape_doubled_odd_height)
        self.backward_odd_width = onednn_operator(library, f"{name}_odd_width", _shape_doubled_odd_width)
        self.backward_odd = onednn_operator(library, f"{name}_odd", _shape_doubled_odd)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.forward(x, weight, bias)

    def bprop(self, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, None, None]:
        odd_height, odd_width = x.shape[2] % 2 == 1, x.shape[3] % 2 == 1
        if odd_height and odd_width:
            return self.backward_odd(dout, weight), None, None
        if odd_height:
            return self.backward_odd_height(dout, weight), None, None
        if odd_width:
            return self.backward_odd_width(dout, weight), None, None
        return self.backward(dout, weight), None, None
