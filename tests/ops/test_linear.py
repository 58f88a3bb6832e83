"""gm/ops/linear.py: against PyTorch, of float32 weights and of weights that are kept in float16."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Parameter, ParameterTuple, Tensor, nn

from benchmarks.workers import Peak
from gm import ops
from gm.ops import layout
from gm.runtime import backend
from tests.reference.inputs import normal, relative_error

modes = pytest.mark.parametrize("graph", [False, True], ids=["pynative", "graph"])
kept = pytest.mark.parametrize("dtype", [np.float16, np.float32])


def frozen(value: np.ndarray) -> Parameter:
    return Parameter(Tensor(value), requires_grad=False)


class Project(nn.Cell):
    def __init__(self, weight: np.ndarray, bias: np.ndarray | None) -> None:
        super().__init__()
        self.weight, self.bias = frozen(weight), None if bias is None else frozen(bias)
        self.project = ops.projection()

    def construct(self, x: Tensor) -> Tensor:
        return layout.to_tokens(self.project(layout.from_tokens(x), self.weight, self.bias))


class Convolve(nn.Cell):
    def __init__(self, weight: np.ndarray, padding: tuple[int, int, int, int], stride: int) -> None:
        super().__init__()
        self.weight = frozen(weight)
        self.convolve = ops.convolution(*weight.shape[:3:2], padding, stride)

    def construct(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight)


class Weighted(nn.Cell):
    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.cell = cell

    def construct(self, x: Tensor, weights: Tensor) -> Tensor:
        return (self.cell(x) * weights).sum()


class Slope(nn.Cell):
    """The gradient of (cell(x) · weights).sum() with respect to x."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.weighted = Weighted(cell)

    def construct(self, x: Tensor, weights: Tensor) -> Tensor:
        return ms.grad(self.weighted)(x, weights)


def compare(cell: nn.Cell, theirs: nn.Cell, graph: bool, x: np.ndarray) -> None:
    given = torch.from_numpy(x).requires_grad_()
    expected = theirs(given)
    weights = normal(9, *expected.shape)
    (expected * torch.from_numpy(weights)).sum().backward()
    found = backend.compile_cell(cell, graph)(Tensor(x)).asnumpy()
    slope = backend.compile_cell(Slope(cell), graph)(Tensor(x), Tensor(weights)).asnumpy()
    assert found.dtype == np.float32
    assert relative_error(found, expected.detach().numpy()) < 2e-6
    assert relative_error(slope, given.grad.numpy()) < 2e-6


@modes
@kept
@pytest.mark.parametrize("bias", [False, True])
def test_projection(bias: bool, dtype: type, graph: bool, layout_of: str) -> None:
    x, weight, shift = normal(1, 2, 6, 5), normal(2, 8, 5).astype(dtype), normal(3, 8) if bias else None
    wide = torch.from_numpy(weight.astype(np.float32))

    def theirs(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, wide, None if shift is None else torch.from_numpy(shift))

    compare(Project(weight, shift), theirs, graph, x)
    compare(Project(weight[:, :, None, None], shift), theirs, graph, x)


@modes
@kept
@pytest.mark.parametrize(("padding", "stride"), [((1, 1, 1, 1), 1), ((1, 1, 1, 1), 2), ((0, 1, 0, 1), 2)])
def test_convolution(padding: tuple[int, int, int, int], stride: int, dtype: type, graph: bool) -> None:
    x, weight = normal(1, 2, 3, 6, 7), normal(2, 4, 3, 3, 3).astype(dtype)
    wide = torch.from_numpy(weight.astype(np.float32))
    top, bottom, left, right = padding

    def theirs(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(torch.nn.functional.pad(x, (left, right, top, bottom)), wide, stride=stride)

    compare(Convolve(weight, padding, stride), theirs, graph, x)


class Deep(nn.Cell):
    """Forty layers of 1024 × 1024, 4 MiB each in float32."""

    def __init__(self, dtype: type) -> None:
        super().__init__()
        weights = [normal(k, 1024, 1024) / 32 for k in range(40)]
        self.weights = ParameterTuple([Parameter(Tensor(w.astype(dtype)), f"w{k}") for k, w in enumerate(weights)])
        for weight in self.weights:
            weight.requires_grad = False
        self.project = ops.projection()

    def construct(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = self.project(x, weight, None)
        return x


@modes
def test_widened_weights_are_not_kept(graph: bool) -> None:
    """Forty of them would be 160 MiB; compiled as it is written, a graph would widen each once and keep it."""
    x, weights = Tensor(normal(1, 1024, 1, 8)), Tensor(normal(2, 1024, 1, 8))
    slope = backend.compile_cell(Slope(Deep(np.float16)), graph)
    peak = Peak()
    peak.reset()
    before = peak.read()
    slope(x, weights).asnumpy()
    assert peak.read() - before < 80 * 2**20
