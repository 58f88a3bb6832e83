"""Products of weights with tokens of the CPU in float32: the operators of `float32_product.cpp`, for graphs."""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from gm.ops.bfloat16 import onednn_operator, shape_projected, shape_projected_back
from gm.ops.shared_cell import shared_cell
from gm.runtime import backend, onednn


def project() -> nn.Cell | None:
    """Return the Cell (x [C, …], weight [outputs, C, …], bias [outputs] or None) → [outputs, …] in the shape of x.

    None where the operators are not there.
    """
    library = onednn.library()
    return shared_cell(_Projection, library) if library and not backend.on_ascend() else None


class _Projection(nn.Cell):
    def __init__(self, library: str) -> None:
        super().__init__()
        self.without_bias = shared_cell(_ProjectWithoutBias, library)
        self.with_bias = shared_cell(_ProjectWithBias, library)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.without_bias(x, weight) if bias is None else self.with_bias(x, weight, bias)


class _ProjectWithoutBias(nn.Cell):
    """A graph that uses no gradient of the weight, which is frozen, does not compute it."""

    def __init__(self, library: str) -> None:
        super().__init__()
        self.forward = onednn_operator(library, "project_float32", shape_projected)
        self.backward = onednn_operator(library, "project_float32_backward", shape_projected_back)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.forward(x, weight)

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        return self.backward(dout, weight), _weight_gradient(x, weight, dout)


class _ProjectWithBias(nn.Cell):
    """Nor does it compute that of the bias."""

    def __init__(self, library: str) -> None:
        super().__init__()
        self.forward = onednn_operator(library, "project_float32", shape_projected)
        self.backward = onednn_operator(library, "project_float32_backward", shape_projected_back)
        self.sum = ops.ReduceSum()  # not BiasAddGrad, which takes no single token

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.forward(x, weight, bias)

    def bprop(self, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        dbias = self.sum(dout.reshape((dout.shape[0], -1)), 1)
        return self.backward(dout, weight), _weight_gradient(x, weight, dout), dbias


def _weight_gradient(x: Tensor, weight: Tensor, dout: Tensor) -> Tensor:
    gradient = ops.MatMul(transpose_b=True)(dout.reshape((dout.shape[0], -1)), x.reshape((x.shape[0], -1)))
    return gradient.reshape(weight.shape)
