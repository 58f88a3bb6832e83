"""Layers shared by the networks; their parameters hold the published checkpoint's tensors as they are.

Parameters are frozen, and not initialised here: a model is built empty and then loaded. Weights have the `dtype` of the
constructor, biases and tables that of the activations (`gm.ops.activation_dtype`); normalisations have float32 weights
(group normalisation on Ascend: those of its kernel) and compute in float32, whatever the dtype of their input.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops
from mindspore.common.initializer import initializer

from gm import ops as gm_ops
from gm.runtime.backend import DType


def parameter(shape: tuple[int, ...], dtype: DType, name: str) -> Parameter:
    """Return a frozen Parameter of `shape`; under `no_init_parameters` it takes no memory until it is loaded.

    Not a plain tensor: PyNative mode would compute its gradient, since a tensor has no `requires_grad=False`.
    """
    return Parameter(initializer("zeros", shape, dtype), name=name, requires_grad=False)


class Linear(nn.Cell):
    """Affine map of vectors: x [N, inputs] → [N, outputs]."""

    def __init__(self, inputs: int, outputs: int, dtype: DType, bias: bool = True) -> None:
        super().__init__()
        self.weight = parameter((outputs, inputs), dtype, "weight")
        self.bias = parameter((outputs,), gm_ops.activation_dtype(dtype), "bias") if bias else None
        self.multiply = gm_ops.vector_product(dtype)

    def construct(self, x: Tensor) -> Tensor:
        if self.multiply is not None:
            y = self.multiply(x, self.weight)
            return y if self.bias is None else gm_ops.add_bias(y, self.bias)
        return gm_ops.linear(x, ops.cast(self.weight, x.dtype), self.bias)


class Projection(Linear):
    """Affine map of every token of a sequence (`gm.ops.layout`)."""

    def __init__(self, inputs: int, outputs: int, dtype: DType, bias: bool = True) -> None:
        super().__init__(inputs, outputs, dtype, bias)
        self.project = gm_ops.projection()

    def construct(self, x: Tensor) -> Tensor:
        return self.project(x, self.weight, self.bias)


class ProjectionFromImage(Linear):
    """Affine map of every pixel of x [N, inputs, H, W] → a sequence of H·W tokens.

    `linear` False: the weight is that of a 1×1 convolution, [outputs, inputs, 1, 1].
    """

    def __init__(self, inputs: int, outputs: int, dtype: DType, linear: bool = True) -> None:
        super().__init__(inputs, outputs, dtype)
        if not linear:
            self.weight = parameter((outputs, inputs, 1, 1), dtype, "weight")
        self.project = gm_ops.projection_from_image()

    def construct(self, x: Tensor) -> Tensor:
        return self.project(x, self.weight, self.bias)


class ProjectionToImage(nn.Cell):
    """Affine map of every token of a sequence of H·W tokens → [N, outputs, H, W]; `linear` as above."""

    def __init__(self, inputs: int, outputs: int, dtype: DType, linear: bool = True) -> None:
        super().__init__()
        shape = (outputs, inputs) if linear else (outputs, inputs, 1, 1)
        self.weight = parameter(shape, dtype, "weight")
        self.bias = parameter((outputs,), gm_ops.activation_dtype(dtype), "bias")
        self.project = gm_ops.projection_to_image()

    def construct(self, x: Tensor, height: int, width: int) -> Tensor:
        return self.project(x, self.weight, self.bias, height, width)


class Conv2d(nn.Cell):
    """Convolution with bias: x [N, inputs, H, W] → [N, outputs, H', W'].

    `padding` is the number of zeros added at top, bottom, left and right; by default it keeps H×W for stride 1.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        dtype: DType,
        stride: int = 1,
        padding: tuple[int, int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.weight = parameter((outputs, inputs, kernel, kernel), dtype, "weight")
        self.bias = parameter((outputs,), gm_ops.activation_dtype(dtype), "bias")
        self.convolution = gm_ops.convolution(outputs, kernel, padding or (kernel // 2,) * 4, stride)

    def construct(self, x: Tensor) -> Tensor:
        return self.convolution(x, self.weight, self.bias)


class PointwiseConv2d(Conv2d):
    """Convolution with a 1×1 kernel: [N, inputs, H, W] → [N, outputs, H, W]."""

    def __init__(self, inputs: int, outputs: int, dtype: DType) -> None:
        super().__init__(inputs, outputs, 1, dtype)
        self.convolution = gm_ops.pointwise_convolution(outputs)


class FrozenEmbedding(nn.Cell):
    """Frozen embedding table [count, width]."""

    def __init__(self, count: int, width: int, dtype: DType) -> None:
        super().__init__()
        self.dtype = gm_ops.activation_dtype(dtype)
        self.embedding_table = parameter((count, width), self.dtype, "embedding_table")


class LayerNorm(nn.Cell):
    """Layer normalisation (Ba et al., 2016) of every token of a sequence (`gm.ops.layout`), in float32."""

    def __init__(self, width: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.gamma = parameter((width,), ms.float32, "gamma")
        self.beta = parameter((width,), ms.float32, "beta")
        self.normalise = gm_ops.layer_norm(width, epsilon)

    def construct(self, x: Tensor) -> Tensor:
        return self.normalise(x, self.gamma, self.beta)


class GroupNorm(nn.Cell):
    """Group normalisation (Wu and He, 2018) of x [N, C, H, W], in float32; with `silu`, SiLU of it.

    `dtype` is that of the network's weights.
    """

    def __init__(
        self, groups: int, channels: int, epsilon: float, dtype: DType = ms.float32, silu: bool = False
    ) -> None:
        super().__init__()
        dtype = gm_ops.group_norm_weight_dtype(dtype)
        self.gamma = parameter((channels,), dtype, "gamma")
        self.beta = parameter((channels,), dtype, "beta")
        self.normalise = gm_ops.group_norm(groups, epsilon, silu)

    def construct(self, x: Tensor) -> Tensor:
        return self.normalise(x, self.gamma, self.beta)


class Upsample(nn.Cell):
    """Nearest-neighbour upsampling to twice the height and width, then a convolution.

    `size` (height, width) crops the upsampled x, to one less than twice where an odd side was halved.
    """

    def __init__(self, channels: int, dtype: DType) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, dtype)

    def construct(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        # Not ops.interpolate, which takes 5 times as long forward on the CPU backend, and 15 times backward.
        x = mint.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        if size is not None and x.shape[2:] != size:  # a crop to its own size would be a copy
            x = x[:, :, : size[0], : size[1]]
        return self.conv(x)


class SinusoidalEmbedding(nn.Cell):
    """Sinusoidal embedding (Vaswani et al., 2017) of float32 values [N] → [N, width].

    Cosines, then sines, at `width`/2 frequencies from 1 down to 1/10000, in the order of the published UNet.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        # Not ops.exp: its relative error of 4e-6 on the CPU backend is multiplied by image sizes in the thousands.
        frequencies = np.exp(-math.log(10000.0) * np.arange(half) / half)
        self.frequencies = Tensor(frequencies.astype(np.float32))

    def construct(self, values: Tensor) -> Tensor:
        angles = values.reshape((-1, 1)) * self.frequencies
        return ops.concat((ops.cos(angles), ops.sin(angles)), axis=-1)
