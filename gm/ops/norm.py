"""Layer and group normalisation, softmax: sums along an axis and broadcasts, said as matrix products on the CPU.

The sum of each column of X is 1ᵀX, and a column repeated is x1ᵀ; both are products, with ones as a factor. Gradients
are written by hand, which keeps nothing but the input for the backward pass.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gm.ops import layout
from gm.ops.shared_cell import shared_cell
from gm.runtime import backend


def layer_norm(width: int, epsilon: float) -> nn.Cell:
    """Return the Cell (x, gamma [width], beta [width]) → x normalised over channels (Ba et al., 2016).

    x is a float32 sequence as `sequence` lays it out: [width, N, L] on the CPU, [N, L, width] on Ascend.
    """
    native = shared_cell(_NativeLayerNorm, epsilon)
    return native if backend.on_ascend() else shared_cell(_ByMode, shared_cell(_LayerNorm, width, epsilon), native)


def group_norm(groups: int, epsilon: float) -> nn.Cell:
    """Return the Cell (x [N, C, H, W] float32, gamma [C], beta [C]) → x normalised in groups (Wu and He, 2018)."""
    native = shared_cell(_NativeGroupNorm, groups, epsilon)
    return native if backend.on_ascend() else shared_cell(_ByMode, shared_cell(_GroupNorm, groups, epsilon), native)


def softmax() -> nn.Cell:
    """Return the Cell x [..., n] float32 → its softmax over the last axis."""
    return nn.Softmax(axis=-1) if backend.on_ascend() else shared_cell(_Softmax)


class _ByMode(nn.Cell):
    """`composed` in a graph; `native` in PyNative mode, where twenty launches take longer than one slow operator."""

    def __init__(self, composed: nn.Cell, native: nn.Cell) -> None:
        super().__init__()
        self.composed, self.native = composed, native

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return self.composed(x, gamma, beta) if backend.in_graph() else self.native(x, gamma, beta)


class _NativeLayerNorm(nn.Cell):
    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.normalise = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=epsilon)

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return layout.from_tokens(self.normalise(layout.to_tokens(x), gamma, beta)[0])


class _NativeGroupNorm(nn.Cell):
    def __init__(self, groups: int, epsilon: float) -> None:
        super().__init__()
        self.groups, self.epsilon = groups, epsilon

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return ops.group_norm(x, self.groups, gamma, beta, self.epsilon)


class _LayerNorm(nn.Cell):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.width, self.epsilon = width, epsilon
        self.average = Tensor(np.full((1, width), 1.0 / width, np.float32))
        self.ones = Tensor(np.ones((width, 1), np.float32))
        self.product, self.add, self.root, self.fill = ops.MatMul(), ops.BiasAdd(), ops.Rsqrt(), ops.FillV2()

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        centred, inverse = self._centred(x.reshape((self.width, -1)))
        y = centred * self.product(gamma.reshape((-1, 1)), inverse)
        return self.add(y.reshape((1, self.width, -1)), beta).reshape(x.shape)

    def bprop(self, x: Tensor, gamma: Tensor, beta: Tensor, out: Tensor, slope: Tensor) -> tuple[Tensor, ...]:
        centred, inverse = self._centred(x.reshape((self.width, -1)))
        slope = slope.reshape((self.width, -1))
        scaled = slope * self.product(gamma.reshape((-1, 1)), inverse)
        mean = self.product(self.average, scaled)
        along = self.product(self.average, scaled * centred) * (inverse * inverse)
        gradient = self.add(scaled, -mean.reshape((-1,))) - centred * self.product(self.ones, along)
        # Nothing is computed in a graph that wants no gradient of the weights.
        of_gamma = self.product(slope * centred, inverse.reshape((-1, 1)))
        of_beta = self.product(slope, self.fill((slope.shape[1], 1), Tensor(1.0, ms.float32)))
        return gradient.reshape(x.shape), of_gamma.reshape((-1,)), of_beta.reshape((-1,))

    def _centred(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the columns of x without their mean, and one over the standard deviation of each [1, columns]."""
        centred = self.add(x, -self.product(self.average, x).reshape((-1,)))
        return centred, self.root(self.product(self.average, centred * centred) + self.epsilon)


class _GroupNorm(nn.Cell):
    def __init__(self, groups: int, epsilon: float) -> None:
        super().__init__()
        self.groups, self.epsilon = groups, epsilon
        self.product, self.add, self.root, self.fill = ops.MatMul(), ops.BiasAdd(), ops.Rsqrt(), ops.FillV2()

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        centred, inverse = self._centred(x)
        y = centred.reshape((n * channels, -1)) * self._scale(inverse, gamma, n, height * width)
        return self.add(y.reshape((n, channels, -1)), beta).reshape(x.shape)

    def bprop(self, x: Tensor, gamma: Tensor, beta: Tensor, out: Tensor, slope: Tensor) -> tuple[Tensor, ...]:
        n, channels, height, width = x.shape
        rows = n * self.groups
        centred, inverse = self._centred(x)
        slope = slope.reshape((n * channels, -1))
        scaled = slope * self._scale(inverse, gamma, n, height * width)
        mean = self._average(scaled, rows, width)
        along = self._average(scaled * centred.reshape((n * channels, -1)), rows, width) * (inverse * inverse)
        scaled = self.add(scaled.reshape((1, rows, -1)), -mean.reshape((-1,)))
        gradient = scaled - centred * self._repeated(along, channels // self.groups * height * width)
        # Nothing is computed in a graph that wants no gradient of the weights.
        of_gamma = self._average(slope * centred.reshape((n * channels, -1)), n * channels, width)
        of_gamma = of_gamma.reshape((n, self.groups, -1)) * inverse.reshape((n, self.groups, 1))
        of_beta = self._average(slope, n * channels, width)
        samples = self.fill((1, n), Tensor(1.0 * height * width, ms.float32))
        of_gamma = self.product(samples, of_gamma.reshape((n, channels)))
        of_beta = self.product(samples, of_beta.reshape((n, channels)))
        return gradient.reshape(x.shape), of_gamma.reshape((-1,)), of_beta.reshape((-1,))

    def _centred(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the groups of x without their mean [1, groups, K], and one over each one's deviation [groups, 1]."""
        rows = x.shape[0] * self.groups
        centred = self.add(x.reshape((1, rows, -1)), -self._average(x, rows, x.shape[3]).reshape((-1,)))
        return centred, self.root(self._average(centred * centred, rows, x.shape[3]) + self.epsilon)

    def _scale(self, inverse: Tensor, gamma: Tensor, n: int, pixels: int) -> Tensor:
        """Return what each channel is multiplied by, over all its pixels [N·C, pixels]."""
        each = inverse.reshape((n, self.groups, 1)) * gamma.reshape((1, self.groups, -1))
        return self._repeated(each.reshape((-1, 1)), pixels)

    def _average(self, x: Tensor, rows: int, width: int) -> Tensor:
        """Return the mean of each of `rows` parts of x [rows, 1]: first along `width`, then over what is left."""
        lines = self.product(x.reshape((-1, width)), self.fill((width, 1), Tensor(1.0 / width, ms.float32)))
        lines = lines.reshape((rows, -1))
        count = lines.shape[1]
        return self.product(lines, self.fill((count, 1), Tensor(1.0 / count, ms.float32)))

    def _repeated(self, column: Tensor, times: int) -> Tensor:
        return self.product(column, self.fill((1, times), Tensor(1.0, ms.float32)))


class _Softmax(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.softmax, self.product, self.fill = ops.Softmax(axis=-1), ops.MatMul(), ops.FillV2()

    def construct(self, x: Tensor) -> Tensor:
        return self.softmax(x)

    def bprop(self, x: Tensor, out: Tensor, slope: Tensor) -> tuple[Tensor]:
        n = out.shape[-1]
        weighted = out * slope
        one: Any = Tensor(1.0, ms.float32)
        total = self.product(weighted.reshape((-1, n)), self.fill((n, 1), one))
        return (weighted - out * self.product(total, self.fill((1, n), one)).reshape(out.shape),)
