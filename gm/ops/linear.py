"""Linear and convolution operators with frozen weights, which may be stored in half precision while x is float32.

A half-precision weight is cast to float32 right before it is used, in the forward and again in the backward pass, and
the float32 copy is freed after each: memory is that of half-precision weights, results are those of float32 weights.
The Cells `_CastingMatMul` and `_CastingConv2d` write their backward pass (`bprop`) themselves to that end: derived by
MindSpore, it would store the float32 copies of all weights from the forward pass on.

On the CPU, bfloat16 weights are multiplied as they are where `gm.ops.bfloat16` is available.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.ops import ascend, bfloat16, float32_convolution, float32_product, layout
from gm.ops.shared_cell import shared_cell
from gm.runtime import backend

_matmul = ops.MatMul(transpose_b=True)


def projection() -> nn.Cell:
    """Return the Cell (x, weight [outputs, C], bias [outputs] or None) → weight times every token of x, plus bias.

    x is a sequence (`gm.ops.layout`) of C channels, the result one of `outputs` channels. The weight may be that of a
    1×1 convolution, [outputs, C, 1, 1].
    """
    return shared_cell(_Projection, backend.on_ascend(), bfloat16.available())


def projection_from_image() -> nn.Cell:
    """Return the Cell (x [N, C, H, W], weight, bias) → the `projection` of the pixels, a sequence of H·W tokens."""
    return shared_cell(_ProjectionFromImage, backend.on_ascend(), bfloat16.available())


def projection_to_image() -> nn.Cell:
    """Return the Cell (x, weight, bias, H, W) → the `projection` of a sequence of H·W tokens, [N, outputs, H, W]."""
    return shared_cell(_ProjectionToImage, backend.on_ascend(), bfloat16.available())


def convolution(outputs: int, kernel: int, padding: tuple[int, int, int, int], stride: int) -> nn.Cell:
    """Return the Cell (x [N, C, H, W], weight [outputs, C, kernel, kernel], bias [outputs]) → [N, outputs, H', W'].

    `padding` is the number of zeros added at top, bottom, left and right.
    """
    return shared_cell(_Convolution, outputs, kernel, padding, stride, backend.on_ascend(), bfloat16.available())


def pointwise_convolution(outputs: int) -> nn.Cell:
    """Return the `convolution` with a 1×1 kernel; on the CPU it is a projection of pixels."""
    if backend.on_ascend():
        return convolution(outputs, 1, (0, 0, 0, 0), 1)
    return shared_cell(_PointwiseConvolution, bfloat16.available())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x Wᵀ + b of vectors x [N, C]; weight [outputs, C] is in the precision of x."""
    if bias is None:
        return _matmul(x, weight)
    return ascend.linear(x, weight, bias) if backend.on_ascend() else ops.bias_add(_matmul(x, weight), bias)


def add_bias(y: Tensor, bias: Tensor) -> Tensor:
    """Return y [N, C, …] plus bias [C]."""
    if backend.on_ascend():
        return y + (bias if y.ndim == 2 else bias.reshape((-1,) + (1,) * (y.ndim - 2)))
    return ops.bias_add(y, bias)


class _Projection(nn.Cell):
    def __init__(self, tokens_first: bool, in_bfloat16: bool) -> None:
        super().__init__()
        self.tokens_first = tokens_first
        self.matmul = ops.MatMul()
        self.casting_matmul = _CastingMatMul(tokens_first)
        self.in_bfloat16 = in_bfloat16
        if in_bfloat16:
            self.project_bfloat16 = bfloat16.project()
            self.project_without_bias = bfloat16.project_without_bias()
        self.project_float32 = float32_product.project()

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        outputs = weight.shape[0]
        if self.in_bfloat16 and weight.dtype == ms.bfloat16:
            return self.project_without_bias(x, weight) if bias is None else self.project_bfloat16(x, weight, bias)
        is_float32 = x.dtype == ms.float32 and weight.dtype == ms.float32
        if self.project_float32 is not None and backend.in_graph() and is_float32:
            return self.project_float32(x, weight, bias)
        if self.tokens_first:
            return self._map_rows(x.reshape((-1, x.shape[2])), weight, bias).reshape((*x.shape[:2], outputs))
        y = self._multiply(x.reshape((x.shape[0], -1)), weight)
        if bias is not None:
            y = ops.bias_add(y.reshape((1, outputs, -1)), bias)
        return y.reshape((outputs, *x.shape[1:]))

    def _map_rows(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if weight.dtype == x.dtype:
            return linear(x, _matrix(weight), bias)
        y = self._multiply(x, weight)
        return y if bias is None else add_bias(y, bias)

    def _multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        if weight.dtype != x.dtype:
            return self.casting_matmul(x, weight)
        return self.matmul(_matrix(weight), x)


class _CastingMatMul(nn.Cell):
    """Product of x with a weight in another precision, which is cast to that of x."""

    def __init__(self, tokens_first: bool) -> None:
        super().__init__()
        self.tokens_first = tokens_first
        self.forward_matmul = ops.MatMul(transpose_b=tokens_first)
        self.backward_matmul = ops.MatMul(transpose_a=not tokens_first)
        self.cast = ops.Cast()
        # Makes the cast depend on x or dout. Without it, a graph merges the casts of both passes, and stores the
        # float32 copy of every weight from the forward to the backward pass.
        self.depend = ops.Depend()

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        matrix = _matrix(self.cast(self.depend(weight, x), x.dtype))
        return self.forward_matmul(x, matrix) if self.tokens_first else self.forward_matmul(matrix, x)

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, None]:
        # The gradient of W x is Wᵀ dout, that of x Wᵀ is dout W; the weight is frozen and gets none.
        matrix = _matrix(self.cast(self.depend(weight, dout), dout.dtype))
        dx = self.backward_matmul(dout, matrix) if self.tokens_first else self.backward_matmul(matrix, dout)
        return dx, None


class _ProjectionFromImage(nn.Cell):
    """On Ascend, the product reads pixels and weight transposed, so that no kernel transposes them."""

    def __init__(self, on_ascend: bool, in_bfloat16: bool) -> None:
        super().__init__()
        self.on_ascend = on_ascend
        self.matmul = ops.BatchMatMul(transpose_a=True, transpose_b=True)
        self.project = shared_cell(_Projection, on_ascend, in_bfloat16)
        self.swap = layout.swap_leading_axes()

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if not self.on_ascend or weight.dtype != x.dtype:
            return self.project(layout.from_image(x, self.swap), weight, bias)
        n, channels, height, width = x.shape
        y = self.matmul(x.reshape((n, channels, -1)), _matrix(weight).expand_dims(0))
        return add_bias(y.reshape((-1, weight.shape[0])), bias).reshape((n, height * width, -1))


class _ProjectionToImage(nn.Cell):
    """On Ascend, the product reads the tokens transposed, as above."""

    def __init__(self, on_ascend: bool, in_bfloat16: bool) -> None:
        super().__init__()
        self.on_ascend = on_ascend
        self.matmul = ops.BatchMatMul(transpose_b=True)
        self.project = shared_cell(_Projection, on_ascend, in_bfloat16)
        self.swap = layout.swap_leading_axes()

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
        if not self.on_ascend or weight.dtype != x.dtype:
            return layout.to_image(self.project(x, weight, bias), self.swap, height, width)
        y = add_bias(self.matmul(_matrix(weight).expand_dims(0), x), bias)
        return y.reshape((*y.shape[:2], height, width))


def _matrix(weight: Tensor) -> Tensor:
    """Return a weight [outputs, C] or [outputs, C, 1, 1] as a matrix."""
    return weight if weight.ndim == 2 else weight.reshape(weight.shape[:2])


class _Convolution(nn.Cell):
    def __init__(
        self,
        outputs: int,
        kernel: int,
        padding: tuple[int, int, int, int],
        stride: int,
        on_ascend: bool,
        in_bfloat16: bool,
    ) -> None:
        super().__init__()
        # Padding is part of the convolution. Never ops.pad: in a graph on the CPU backend its gradient hangs after some
        # tens of runs.
        options: dict[str, Any] = {"pad_mode": "pad", "pad": padding, "stride": stride}
        self.conv2d = ops.Conv2D(outputs, kernel, **options)
        self.casting_conv2d = _CastingConv2d(outputs, kernel, options)
        in_bfloat16 = in_bfloat16 and kernel % 2 == 1 and set(padding) == {kernel // 2} and stride in (1, 2)
        self.convolve_bfloat16 = bfloat16.convolution(stride) if in_bfloat16 else None
        self.convolve = float32_convolution.convolution(outputs, kernel, padding, stride)
        # Ascend's kernel pads all sides alike.
        fits = on_ascend and len(set(padding)) == 1
        self.with_bias = shared_cell(ascend.Convolution, padding[0], stride) if fits else None

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.convolve_bfloat16 is not None and weight.dtype == ms.bfloat16:
            return self.convolve_bfloat16(x, weight, bias)
        if weight.dtype != x.dtype:
            return add_bias(self.casting_conv2d(x, weight), bias)
        if self.with_bias is not None:
            return self.with_bias(x, weight, bias)
        is_large = x.shape[2] * x.shape[3] >= float32_convolution.MIN_PIXELS
        if self.convolve is not None and backend.in_graph() and is_large and x.dtype == ms.float32:
            return self.convolve(x, weight, bias)
        return add_bias(self.conv2d(x, weight), bias)


class _PointwiseConvolution(nn.Cell):
    def __init__(self, in_bfloat16: bool) -> None:
        super().__init__()
        self.project = shared_cell(_Projection, False, in_bfloat16)
        self.swap = layout.swap_leading_axes()

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        tokens = self.project(layout.from_image(x, self.swap), weight, bias)
        return layout.to_image(tokens, self.swap, *x.shape[2:])


class _CastingConv2d(nn.Cell):
    """Convolution of x with a weight in another precision, which is cast to that of x."""

    def __init__(self, outputs: int, kernel: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.forward_conv = ops.Conv2D(outputs, kernel, **options)
        self.backward_conv = ops.Conv2DTranspose(outputs, kernel, **options)
        self.cast = ops.Cast()
        self.depend = ops.Depend()  # as in `_CastingMatMul`

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.forward_conv(x, self.cast(self.depend(weight, x), x.dtype))

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, None]:
        # The gradient in x is the transposed convolution of dout; the weight is frozen and gets none.
        return self.backward_conv(dout, self.cast(self.depend(weight, dout), dout.dtype), x.shape), None
