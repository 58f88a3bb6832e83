"""The layers that the networks share, each drop-in for what the published checkpoint stores.

Parameters are frozen by default and are not initialised here: a model is built empty and then loaded. Weights take the
dtype asked for; normalisations keep float32 weights and compute in float32, whatever comes in.
"""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops
from mindspore.common.initializer import initializer

from gm import ops as gm_ops
from gm.ops import layout


def parameter(shape: tuple[int, ...], dtype: Any, name: str) -> Parameter:
    """Return a frozen Parameter of `shape`; under `no_init_parameters` it costs no memory until it is loaded.

    Frozen means `requires_grad=False` on a Parameter: for a plain tensor PyNative mode would compute the gradient.
    """
    return Parameter(initializer("zeros", shape, dtype), name=name, requires_grad=False)


class Linear(nn.Cell):
    """Affine map of vectors: x [N, inputs] → [N, outputs]; weight [outputs, inputs]."""

    def __init__(self, inputs: int, outputs: int, dtype: Any, bias: bool = True) -> None:
        super().__init__()
        self.weight = parameter((outputs, inputs), dtype, "weight")
        self.bias = parameter((outputs,), dtype, "bias") if bias else None
        self.product = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor) -> Tensor:
        y = self.product(x, ops.cast(self.weight, x.dtype))
        return y if self.bias is None else ops.bias_add(y, self.bias)


class Projection(Linear):
    """Affine map of every token of a sequence (`gm.ops.layout`); weight [outputs, inputs]."""

    def __init__(self, inputs: int, outputs: int, dtype: Any, bias: bool = True) -> None:
        super().__init__(inputs, outputs, dtype, bias)
        self.project = gm_ops.projection()

    def construct(self, x: Tensor) -> Tensor:
        return self.project(x, self.weight, self.bias)


class Conv2d(nn.Cell):
    """Convolution with a bias, x [N, inputs, H, W] → [N, outputs, H', W'].

    Zeros are added at `padding` (top, bottom, left, right); by default so many that stride 1 keeps H×W.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        dtype: Any,
        stride: int = 1,
        padding: tuple[int, int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.weight = parameter((outputs, inputs, kernel, kernel), dtype, "weight")
        self.bias = parameter((outputs,), dtype, "bias")
        self.convolution = gm_ops.convolution(outputs, kernel, padding or (kernel // 2,) * 4, stride)

    def construct(self, x: Tensor) -> Tensor:
        return self.convolve(x)

    def convolve(self, x: Tensor) -> Tensor:
        return ops.bias_add(self.convolution(x, self.weight), self.bias)


class PointwiseConv2d(Conv2d):
    """Convolution with a kernel of one pixel, x [N, inputs, H, W] → [N, outputs, H, W]: a projection of the pixels."""

    def __init__(self, inputs: int, outputs: int, dtype: Any) -> None:
        super().__init__(inputs, outputs, 1, dtype)
        self.project = gm_ops.projection()

    def construct(self, x: Tensor) -> Tensor:
        return layout.to_image(self.project(layout.from_image(x), self.weight, self.bias), *x.shape[2:])


class FrozenEmbedding(nn.Cell):
    """A frozen table [rows, width], looked up by id."""

    def __init__(self, rows: int, width: int, dtype: Any) -> None:
        super().__init__()
        self.dtype = dtype
        self.embedding_table = parameter((rows, width), dtype, "embedding_table")


class LayerNorm(nn.Cell):
    """Normalises every token of a sequence (`gm.ops.layout`) in float32."""

    def __init__(self, width: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.gamma = parameter((width,), ms.float32, "gamma")
        self.beta = parameter((width,), ms.float32, "beta")
        self.normalise = gm_ops.layer_norm(width, epsilon)

    def construct(self, x: Tensor) -> Tensor:
        return ops.cast(self.normalise(ops.cast(x, ms.float32), self.gamma, self.beta), x.dtype)


class GroupNorm(nn.Cell):
    """Normalises each group of channels of x [N, C, H, W] in float32."""

    def __init__(self, groups: int, channels: int, epsilon: float) -> None:
        super().__init__()
        self.gamma = parameter((channels,), ms.float32, "gamma")
        self.beta = parameter((channels,), ms.float32, "beta")
        self.normalise = gm_ops.group_norm(groups, epsilon)

    def construct(self, x: Tensor) -> Tensor:
        return ops.cast(self.normalise(ops.cast(x, ms.float32), self.gamma, self.beta), x.dtype)


class Upsample(nn.Cell):
    """Doubles height and width (nearest neighbour), then convolves."""

    def __init__(self, channels: int, dtype: Any) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, dtype)

    def construct(self, x: Tensor) -> Tensor:
        return self.double(x, (2 * x.shape[2], 2 * x.shape[3]))

    def double(self, x: Tensor, size: tuple) -> Tensor:
        """Double `x` and cut it to `size`, which is one less where an odd side was halved."""
        # ops.interpolate takes five times as long on the CPU backend, forward, and fifteen times backward.
        x = mint.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        # A slice of everything is copied all the same.
        return self.conv(x if x.shape[2:] == size else x[:, :, : size[0], : size[1]])


class SinusoidalEmbedding(nn.Cell):
    """Cosines then sines of float32 values [N] at `width`/2 frequencies from 1 down to 1/10000 → [N, width].

    The order is that of the published UNet; the idea is Vaswani et al., 2017.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        # Not ops.exp: its error of 4e-6 on the CPU backend is multiplied by sizes in the thousands.
        frequencies = np.exp(-math.log(10000.0) * np.arange(half) / half)
        self.frequencies = Tensor(frequencies.astype(np.float32))

    def construct(self, values: Tensor) -> Tensor:
        angles = values.reshape((-1, 1)) * self.frequencies
        return ops.concat((ops.cos(angles), ops.sin(angles)), axis=-1)
