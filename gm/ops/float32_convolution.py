"""Convolutions of the CPU in float32: the operators of `float32_convolution.cpp`, for graphs."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.ops.operations import _grad_ops

from gm.ops.shared_cell import shared_cell
from gm.runtime import backend, onednn

# Pixels from which on it is faster. oneDNN alone took 0.75 to 0.83 of the time of MindSpore 2.8's operators at 64×64
# pixels, forward and backward on two cores, and 0.85 at 32×32. At 16×16 its forward pass was slower.
MIN_PIXELS = 1024


def convolution(outputs: int, kernel: int, padding: tuple[int, int, int, int], stride: int) -> nn.Cell | None:
    """Return the Cell (x [N, C, H, W], weight [outputs, C, kernel, kernel], bias [outputs]) → [N, outputs, H, W].

    None where the operators are not there, or for a stride or padding that changes the size.
    """
    library = onednn.library()
    if not library or backend.on_ascend() or kernel % 2 == 0 or set(padding) != {kernel // 2} or stride != 1:
        return None
    return shared_cell(_Convolution, library, outputs, kernel)


def _shape_convolved(x: Any, weight: Any, bias: Any) -> list[int]:
    return [x[0], weight[0], x[2], x[3]]


def _shape_convolved_back(dout: Any, weight: Any) -> list[int]:
    return [dout[0], weight[1], dout[2], dout[3]]


class _Convolution(nn.Cell):
    """A graph that uses no gradient of weight and bias, which are frozen, does not compute them."""

    def __init__(self, library: str, outputs: int, kernel: int) -> None:
        super().__init__()
        options: dict[str, Any] = {"out_dtype": ms.float32, "func_type": "aot"}
        self.forward = ops.Custom(f"{library}:convolution_float32", _shape_convolved, **options)
        self.backward = ops.Custom(f"{library}:convolution_float32_backward", _shape_convolved_back, **options)
        pad = (kernel // 2,) * 4
        self.weight_gradient = _grad_ops.Conv2DBackpropFilter(outputs, kernel, "pad", pad, pad_list=pad)
        self.bias_gradient = _grad_ops.BiasAddGrad()

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.forward(x, weight, bias)

    def bprop(self, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        dweight = self.weight_gradient(dout, x, weight.shape)
        return self.backward(dout, weight), dweight, self.bias_gradient(dout)
