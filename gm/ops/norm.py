"""Layer normalisation, group normalisation and softmax; on the CPU sums along an axis and broadcasts are products.

Normalisations are operators of `gm.ops.fused` where those are there; the compositions here are for where they are not.
MindSpore's CPU backend runs native normalisations and sums along an axis on one thread, and stores an index of 8 bytes
per element for each broadcast; matrix products use all threads. So 1ᵀX sums the columns of X, and x1ᵀ repeats the
column x: a layer normalisation with its gradient takes 0.5 instead of 1.6 ms. The Cells write their backward pass
(`bprop`) themselves, so that it consists of products, too, and that only one tensor, input or output, is stored for it.
A graph that uses no gradient of gamma and beta, which are frozen, does not compute them.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gm.ops import ascend, fused, layout
from gm.ops.shared_cell import shared_cell
from gm.runtime import backend
from gm.runtime.backend import DType


def layer_norm(width: int, epsilon: float) -> nn.Cell:
    """Return the Cell (x, gamma [width], beta [width]) → layer normalisation of x (Ba et al., 2016), in float32.

    x is a sequence (`gm.ops.layout`) in any precision, which the result has, too; gamma and beta are float32.
    """
    if backend.on_ascend():
        return shared_cell(ascend.LayerNorm, width, epsilon)
    if operator := fused.layer_norm(epsilon):
        return operator
    return shared_cell(_ByMode, shared_cell(_LayerNorm, width, epsilon), shared_cell(_NativeLayerNorm, epsilon))


def group_norm(groups: int, epsilon: float, silu: bool = False) -> nn.Cell:
    """Return the Cell (x [N, C, H, W], gamma [C], beta [C]) → group normalisation of x (Wu and He, 2018), in float32.

    With `silu`, SiLU of it. x has any precision, which the result has, too; gamma and beta have
    `group_norm_weight_dtype`.
    """
    if operator := fused.group_norm(groups, epsilon, silu):
        return operator
    if backend.on_ascend():
        normalise = shared_cell(ascend.GroupNorm, groups, epsilon)
    else:
        native = shared_cell(_NativeGroupNorm, groups, epsilon)
        normalise = shared_cell(_ByMode, shared_cell(_GroupNorm, groups, epsilon), native)
    return shared_cell(_WithSiLU, normalise) if silu else normalise


def group_norm_weight_dtype(dtype: DType) -> DType:
    """Return the dtype of gamma and beta of a group normalisation in a network whose weights have `dtype`."""
    return ascend.group_norm_weight_dtype(dtype) if backend.on_ascend() else ms.float32


def softmax() -> nn.Cell:
    """Return the Cell x [..., n] float32 → softmax over the last axis."""
    return nn.Softmax(axis=-1) if backend.on_ascend() else shared_cell(_Softmax)


class _WithSiLU(nn.Cell):
    def __init__(self, normalise: nn.Cell) -> None:
        super().__init__()
        self.normalise = normalise
        self.silu = nn.SiLU()

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return self.silu(self.normalise(x, gamma, beta))


class _ByMode(nn.Cell):
    """`composed` in a graph, `native` in PyNative mode, where twenty launches take longer than one slow operator.

    Both get x in float32.
    """

    def __init__(self, composed: nn.Cell, native: nn.Cell) -> None:
        super().__init__()
        self.composed = composed
        self.native = native

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        y = ops.cast(x, ms.float32)
        y = self.composed(y, gamma, beta) if backend.in_graph() else self.native(y, gamma, beta)
        return ops.cast(y, x.dtype)


class _NativeLayerNorm(nn.Cell):
    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.normalise = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=epsilon)

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return layout.from_tokens(self.normalise(layout.to_tokens(x), gamma, beta)[0])


class _NativeGroupNorm(nn.Cell):
    def __init__(self, groups: int, epsilon: float) -> None:
        super().__init__()
        self.groups = groups
        self.epsilon = epsilon

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return ops.group_norm(x, self.groups, gamma, beta, self.epsilon)


class _LayerNorm(nn.Cell):
    """y = γ (x - μ) / s + β over the channels, with s = √(variance + ε)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.width = width
        self.epsilon = epsilon
        self.average = Tensor(np.full((1, width), 1.0 / width, np.float32))
        self.ones = Tensor(np.ones((width, 1), np.float32))
        self.matmul = ops.MatMul()
        self.bias_add = ops.BiasAdd()
        self.rsqrt = ops.Rsqrt()
        self.fill = ops.FillV2()

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        centered, inverse = self._center(x.reshape((self.width, -1)))
        y = centered * self.matmul(gamma.reshape((-1, 1)), inverse)
        return self.bias_add(y.reshape((1, self.width, -1)), beta).reshape(x.shape)

    def bprop(self, x: Tensor, gamma: Tensor, beta: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        # With g = γ dout / s and c = x - μ: dx = g - mean(g) - c mean(g c) / s², dγ = Σ dout c / s, dβ = Σ dout.
        centered, inverse = self._center(x.reshape((self.width, -1)))
        dout = dout.reshape((self.width, -1))
        g = dout * self.matmul(gamma.reshape((-1, 1)), inverse)
        mean = self.matmul(self.average, g)
        projection = self.matmul(self.average, g * centered) * (inverse * inverse)
        dx = self.bias_add(g, -mean.reshape((-1,))) - centered * self.matmul(self.ones, projection)
        dgamma = self.matmul(dout * centered, inverse.reshape((-1, 1)))
        dbeta = self.matmul(dout, self.fill((dout.shape[1], 1), Tensor(1.0, ms.float32)))
        return dx.reshape(x.shape), dgamma.reshape((-1,)), dbeta.reshape((-1,))

    def _center(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the columns of x minus their means, and 1/s of each column [1, columns]."""
        centered = self.bias_add(x, -self.matmul(self.average, x).reshape((-1,)))
        return centered, self.rsqrt(self.matmul(self.average, centered * centered) + self.epsilon)


class _GroupNorm(nn.Cell):
    """y = γ (x - μ) / s + β, with mean μ and s = √(variance + ε) of each group of channels of each image."""

    def __init__(self, groups: int, epsilon: float) -> None:
        super().__init__()
        self.groups = groups
        self.epsilon = epsilon
        self.matmul = ops.MatMul()
        self.bias_add = ops.BiasAdd()
        self.rsqrt = ops.Rsqrt()
        self.fill = ops.FillV2()

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        centered, inverse = self._center(x)
        y = centered.reshape((n * channels, -1)) * self._scale(inverse, gamma, n, height * width)
        return self.bias_add(y.reshape((n, channels, -1)), beta).reshape(x.shape)

    def bprop(self, x: Tensor, gamma: Tensor, beta: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        # With g = γ dout / s and c = x - μ: dx = g - mean(g) - c mean(g c) / s², dγ = Σ dout c / s, dβ = Σ dout.
        n, channels, height, width = x.shape
        num_groups = n * self.groups
        centered, inverse = self._center(x)
        centered_channels = centered.reshape((n * channels, -1))
        dout = dout.reshape((n * channels, -1))
        g = dout * self._scale(inverse, gamma, n, height * width)
        mean = self._mean(g, num_groups, width)
        projection = self._mean(g * centered_channels, num_groups, width) * (inverse * inverse)
        g = self.bias_add(g.reshape((1, num_groups, -1)), -mean.reshape((-1,)))
        dx = g - centered * self._repeat(projection, channels // self.groups * height * width)
        dgamma = self._mean(dout * centered_channels, n * channels, width)
        dgamma = dgamma.reshape((n, self.groups, -1)) * inverse.reshape((n, self.groups, 1))
        dbeta = self._mean(dout, n * channels, width)
        sum_over_images = self.fill((1, n), Tensor(1.0 * height * width, ms.float32))
        dgamma = self.matmul(sum_over_images, dgamma.reshape((n, channels)))
        dbeta = self.matmul(sum_over_images, dbeta.reshape((n, channels)))
        return dx.reshape(x.shape), dgamma.reshape((-1,)), dbeta.reshape((-1,))

    def _center(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the groups of x minus their means [1, N·groups, K], and 1/s of each group [N·groups, 1]."""
        num_groups = x.shape[0] * self.groups
        mean = self._mean(x, num_groups, x.shape[3])
        centered = self.bias_add(x.reshape((1, num_groups, -1)), -mean.reshape((-1,)))
        return centered, self.rsqrt(self._mean(centered * centered, num_groups, x.shape[3]) + self.epsilon)

    def _scale(self, inverse: Tensor, gamma: Tensor, n: int, pixels: int) -> Tensor:
        """Return γ/s of each channel, repeated over its pixels [N·C, pixels]."""
        scale = inverse.reshape((n, self.groups, 1)) * gamma.reshape((1, self.groups, -1))
        return self._repeat(scale.reshape((-1, 1)), pixels)

    def _mean(self, x: Tensor, parts: int, width: int) -> Tensor:
        """Return the mean of each of the equal `parts` of x [parts, 1]: over lines of `width`, then over lines."""
        lines = self.matmul(x.reshape((-1, width)), self.fill((width, 1), Tensor(1.0 / width, ms.float32)))
        lines = lines.reshape((parts, -1))
        count = lines.shape[1]
        return self.matmul(lines, self.fill((count, 1), Tensor(1.0 / count, ms.float32)))

    def _repeat(self, column: Tensor, times: int) -> Tensor:
        return self.matmul(column, self.fill((1, times), Tensor(1.0, ms.float32)))


class _Softmax(nn.Cell):
    """The native operator, with a backward pass made of products."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax = ops.Softmax(axis=-1)
        self.matmul = ops.MatMul()
        self.fill = ops.FillV2()

    def construct(self, x: Tensor) -> Tensor:
        return self.softmax(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        # dx = p dout - p Σ p dout, p being the softmax.
        n = out.shape[-1]
        weighted = out * dout
        one: Any = Tensor(1.0, ms.float32)
        total = self.matmul(weighted.reshape((-1, n)), self.fill((n, 1), one))
        return (weighted - out * self.matmul(total, self.fill((1, n), one)).reshape(out.shape),)
