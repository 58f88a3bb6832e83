"""Products with frozen weights, which may be kept in half precision while x is float32.

Such a weight is widened when it is needed, in the forward and in the backward pass, and never kept wide: the memory
is that of the file, the numbers are those of float32 weights. The gradients by hand are what makes that so.
"""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, nn, ops

from gm.ops.shared_cell import shared_cell
from gm.runtime import backend


def projection() -> nn.Cell:
    """Return the Cell (x, weight [outputs, C], bias [outputs] or None) → weight times every token of x, plus bias.

    x is a sequence of C channels as `sequence` lays it out, and so is the result, of `outputs` channels. The weight may
    be that of a convolution of one pixel, [outputs, C, 1, 1].
    """
    return shared_cell(_Projection, backend.on_ascend())


def convolution(outputs: int, kernel: int, padding: tuple[int, int, int, int], stride: int) -> nn.Cell:
    """Return the Cell (x [N, C, H, W], weight [outputs, C, kernel, kernel]) → [N, outputs, H', W'].

    Zeros are added at `padding` (top, bottom, left, right).
    """
    return shared_cell(_Convolution, outputs, kernel, padding, stride)


class _Projection(nn.Cell):
    def __init__(self, tokens_first: bool) -> None:
        super().__init__()
        self.tokens_first = tokens_first
        self.product = ops.MatMul(transpose_b=True) if tokens_first else ops.MatMul()
        self.widening = _WideningProduct(tokens_first)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        outputs = weight.shape[0]
        if self.tokens_first:
            y = self._multiply(x.reshape((-1, x.shape[2])), weight)
            return (y if bias is None else ops.bias_add(y, bias)).reshape((*x.shape[:2], outputs))
        y = self._multiply(x.reshape((x.shape[0], -1)), weight)
        if bias is not None:
            y = ops.bias_add(y.reshape((1, outputs, -1)), bias)
        return y.reshape((outputs, *x.shape[1:]))

    def _multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        if weight.dtype != x.dtype:
            return self.widening(x, weight)
        weight = _matrix(weight)
        return self.product(x, weight) if self.tokens_first else self.product(weight, x)


class _WideningProduct(nn.Cell):
    def __init__(self, tokens_first: bool) -> None:
        super().__init__()
        self.tokens_first = tokens_first
        self.there, self.back = ops.MatMul(transpose_b=tokens_first), ops.MatMul(transpose_a=not tokens_first)
        self.cast, self.after = ops.Cast(), ops.Depend()

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        wide = _matrix(self.cast(self.after(weight, x), x.dtype))
        return self.there(x, wide) if self.tokens_first else self.there(wide, x)

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, slope: Tensor) -> tuple[Tensor, None]:
        wide = _matrix(self.cast(self.after(weight, slope), slope.dtype))
        return self.back(slope, wide) if self.tokens_first else self.back(wide, slope), None


def _matrix(weight: Tensor) -> Tensor:
    return weight if weight.ndim == 2 else weight.reshape(weight.shape[:2])


class _Convolution(nn.Cell):
    def __init__(self, outputs: int, kernel: int, padding: tuple[int, int, int, int], stride: int) -> None:
        super().__init__()
        # Never ops.pad: in a graph, its gradient on CPU does not come back after some tens of runs.
        options: dict[str, Any] = {"pad_mode": "pad", "pad": padding, "stride": stride}
        self.convolution = ops.Conv2D(outputs, kernel, **options)
        self.widening = _WideningConvolution(outputs, kernel, options)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.convolution(x, weight) if weight.dtype == x.dtype else self.widening(x, weight)


class _WideningConvolution(nn.Cell):
    def __init__(self, outputs: int, kernel: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.there = ops.Conv2D(outputs, kernel, **options)
        self.back = ops.Conv2DTranspose(outputs, kernel, **options)
        self.cast, self.after = ops.Cast(), ops.Depend()

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.there(x, self.cast(self.after(weight, x), x.dtype))

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, slope: Tensor) -> tuple[Tensor, None]:
        return self.back(slope, self.cast(self.after(weight, slope), slope.dtype), x.shape), None
