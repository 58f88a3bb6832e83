"""Workers that time chained operators: python -m benchmarks.operators_mindspore ours|bfloat16|native SHAPES."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from benchmarks import operators
from benchmarks.operators import EPSILON, LINKS, Shape
from benchmarks.workers import Work, serve
from gm import ops as gm_ops
from gm.config import RunConfig
from gm.ops import layout
from gm.runtime import backend, rng
from gm.runtime.backend import DType


class _Chain(nn.Cell):
    """Mean square of x after `LINKS` times the same operator; only cross-attention uses the context."""

    def __init__(self, shape: Shape, ours: bool, dtype: DType) -> None:
        super().__init__(auto_prefix=False)
        self.ours, self.operator, self.width, self.scale = ours, shape.operator, shape.width, float(shape.width)
        self.across, self.heads, self.causal, self.groups = shape.keys > 0, shape.heads, shape.causal, shape.groups
        width = shape.width
        size = (width, width, 3, 3) if shape.operator == "convolution" else (width, width)
        weight = rng.normal(size, 0, "weight") / math.sqrt(math.prod(size[1:]))
        self.weight = Parameter(Tensor(weight, dtype), requires_grad=False)
        self.gamma, self.beta = _frozen(np.ones(width)), _frozen(np.zeros(width))
        self.layer_norm = gm_ops.layer_norm(width, EPSILON) if ours else ops.LayerNorm(-1, -1, EPSILON)
        self.group_norm = gm_ops.group_norm(shape.groups, EPSILON)
        self.softmax = gm_ops.softmax() if ours else ops.Softmax(-1)
        self.gelu = gm_ops.gelu()
        self.attend = gm_ops.attention(shape.heads, shape.causal)
        self.project = gm_ops.projection()
        self.convolve = gm_ops.convolution(width, 3, (1, 1, 1, 1), 1)
        self.native_convolution = ops.Conv2D(width, 3, pad_mode="pad", pad=1)

    def construct(self, x: Tensor, context: Tensor) -> Tensor:
        for _ in range(LINKS):
            x = self.link(x, context)
        return (x * x).mean()

    def link(self, x: Tensor, context: Tensor) -> Tensor:
        if self.operator == "softmax":
            # Scaled, so that the gradient does not vanish along the chain.
            return self.softmax(x) * self.scale
        if self.operator == "attention":
            other = context if self.across else x
            return self.attend(x, other, other) if self.ours else self.native_attention(x, other)
        if self.ours:
            return self.our_link(x)
        return self.native_link(x)

    def our_link(self, x: Tensor) -> Tensor:
        if self.operator == "layer_norm":
            return self.layer_norm(x, self.gamma, self.beta)
        if self.operator == "group_norm":
            return self.group_norm(x, self.gamma, self.beta)
        if self.operator == "gelu":
            return self.gelu(x)
        if self.operator == "convolution":
            return self.convolve(x, self.weight, self.beta)
        return self.project(x, self.weight, self.beta)

    def native_link(self, x: Tensor) -> Tensor:
        if self.operator == "layer_norm":
            return self.layer_norm(x, self.gamma, self.beta)[0]
        if self.operator == "group_norm":
            return ops.group_norm(x, self.groups, self.gamma, self.beta, EPSILON)
        if self.operator == "gelu":
            return ops.gelu(x, approximate="none")
        if self.operator == "convolution":
            return ops.bias_add(self.native_convolution(x, self.weight), self.beta)
        y = ops.MatMul(transpose_b=True)(x.reshape((-1, self.width)), self.weight)
        return ops.bias_add(y, self.beta).reshape(x.shape)

    def native_attention(self, x: Tensor, other: Tensor) -> Tensor:
        q, k, v = self.apart(x), self.apart(other), self.apart(other)
        scores = ops.BatchMatMul(transpose_b=True)(q, k) * (1.0 / math.sqrt(self.width // self.heads))
        if self.causal:
            length = scores.shape[3]
            scores = scores + ops.triu(ops.full((length, length), -1e9, dtype=ms.float32), diagonal=1)
        return ops.BatchMatMul()(ops.Softmax(-1)(scores), v).transpose((0, 2, 1, 3)).reshape(x.shape)

    def apart(self, x: Tensor) -> Tensor:
        return x.reshape((x.shape[0], x.shape[1], self.heads, -1)).transpose((0, 2, 1, 3))


class _Both(nn.Cell):
    def __init__(self, chain: nn.Cell, count: int) -> None:
        super().__init__(auto_prefix=False)
        self.chain, self.positions = chain, tuple(range(count))

    def construct(self, x: Tensor, context: Tensor) -> Any:
        return ms.value_and_grad(self.chain, grad_position=self.positions)(x, context)


def inputs(shape: Shape, ours: bool) -> list[Tensor]:
    """Return x and the context in the operator's layout."""
    x = rng.normal((1, shape.tokens, shape.width), 0, "x")
    context = rng.normal((1, max(1, shape.keys), shape.width), 0, "context")
    if shape.operator == "softmax":
        return [Tensor(rng.normal((shape.heads, shape.tokens, shape.width), 0, "x")), Tensor(context)]
    if shape.operator in ("group_norm", "convolution"):
        return [Tensor(x.transpose(0, 2, 1).reshape(1, shape.width, shape.height, -1).copy()), Tensor(context)]
    return [layout.from_tokens(Tensor(each)) if ours else Tensor(each) for each in (x, context)]


def set_up(side: str, shapes: list[Shape]) -> tuple[dict[str, Any], Work]:
    """Return a worker that runs every chain once per piece, forward, and forward and backward."""
    ours = side != "native"
    dtype = backend.setup(RunConfig(device_target="CPU", precision="bfloat16" if side == "bfloat16" else "auto")).dtype
    pairs = {}
    for shape in shapes:
        chain = _Chain(shape, ours, dtype)
        count = 2 if shape.operator == "attention" and shape.keys else 1
        both = backend.compile_cell(_Both(chain, count), True)
        pairs[str(shape)] = (backend.compile_cell(chain, True), both, inputs(shape, ours))

    def work() -> dict[str, Any]:
        return {name: [_timed(forward, x), _timed(both, x)] for name, (forward, both, x) in pairs.items()}

    return {}, lambda: {"chains": work()}


def _timed(run: Any, x: list[Tensor]) -> float:
    started = time.perf_counter()
    result = run(*x)
    (result[0] if isinstance(result, tuple) else result).asnumpy()
    return time.perf_counter() - started


def _frozen(values: np.ndarray) -> Parameter:
    return Parameter(Tensor(np.asarray(values, np.float32)), requires_grad=False)


def main() -> None:
    serve(lambda: set_up(sys.argv[1], operators.from_json(sys.argv[2])))


if __name__ == "__main__":
    main()
