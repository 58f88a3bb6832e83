"""gm/ops/norm.py against PyTorch: values and gradients, in both modes."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from gm import ops
from gm.runtime import backend
from tests.reference.inputs import normal, relative_error

modes = pytest.mark.parametrize("graph", [False, True], ids=["pynative", "graph"])


class Slope(nn.Cell):
    """The gradients of (cell(x, …) · weights).sum() with respect to x and to what else the cell takes."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.weighted = Weighted(cell)

    def construct(self, weights: Tensor, x: Tensor, *rest: Tensor) -> tuple:
        if len(rest) == 0:
            return (ms.grad(self.weighted)(x, None, None, weights),)
        return ms.grad(self.weighted, grad_position=(0, 1, 2))(x, rest[0], rest[1], weights)


class Weighted(nn.Cell):
    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.cell = cell

    def construct(self, x: Tensor, gamma: Tensor | None, beta: Tensor | None, weights: Tensor) -> Tensor:
        return ((self.cell(x) if gamma is None else self.cell(x, gamma, beta)) * weights).sum()


def compare(cell: nn.Cell, theirs: Callable, graph: bool, x: np.ndarray, *rest: np.ndarray) -> None:
    weights = normal(9, *x.shape)
    inputs = [torch.from_numpy(given).requires_grad_() for given in (x, *rest)]
    expected = theirs(*inputs)
    (expected * torch.from_numpy(weights)).sum().backward()
    found = backend.compile_cell(cell, graph)(Tensor(x), *map(Tensor, rest)).asnumpy()
    slopes = backend.compile_cell(Slope(cell), graph)(Tensor(weights), Tensor(x), *map(Tensor, rest))
    assert relative_error(found, expected.detach().numpy()) < 2e-6
    for slope, given in zip(slopes, inputs, strict=True):
        assert relative_error(slope.asnumpy(), given.grad.numpy()) < 1e-5


@modes
@pytest.mark.parametrize(("n", "length"), [(1, 7), (3, 5), (1, 1)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_layer_norm(graph: bool, n: int, length: int, offset: float) -> None:
    """A mean thirty times the deviation costs no digits: it is taken away before anything is squared."""
    x = normal(1, 24, n, length) + np.float32(offset)
    gamma, beta = 1.0 + 0.1 * normal(2, 24), normal(3, 24)

    def theirs(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.layer_norm(x.permute(1, 2, 0), (24,), gamma, beta, 1e-5)
        return y.permute(2, 0, 1)

    if offset:
        x = np.round(x * 64) / np.float32(64)  # so that the sums themselves are exact
    compare(ops.layer_norm(24, 1e-5), theirs, graph, x, gamma, beta)


@modes
@pytest.mark.parametrize("shape", [(1, 12, 5, 7), (3, 12, 4, 4), (2, 12, 1, 1)])
@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_group_norm(graph: bool, shape: tuple[int, ...], epsilon: float) -> None:
    gamma, beta = 1.0 + 0.1 * normal(2, 12), normal(3, 12)

    def theirs(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.group_norm(x, 3, gamma, beta, epsilon)

    compare(ops.group_norm(3, epsilon), theirs, graph, 2.0 + normal(1, *shape), gamma, beta)


@modes
def test_softmax(graph: bool) -> None:
    compare(ops.softmax(), lambda x: torch.softmax(x, dim=-1), graph, 5.0 * normal(1, 2, 3, 4, 11))


def test_ascend_has_the_native_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """They compute the same, from tokens that come first."""
    x, gamma, beta = normal(1, 2, 5, 24), 1.0 + 0.1 * normal(2, 24), normal(3, 24)
    image = normal(4, 2, 24, 4, 4)

    def computed(x: np.ndarray) -> list[np.ndarray]:
        weights = Tensor(gamma), Tensor(beta)
        cells = ops.layer_norm(24, 1e-5), ops.group_norm(3, 1e-5), ops.softmax()
        inputs = (Tensor(x), *weights), (Tensor(image), *weights), (Tensor(image),)
        return [cell(*given).asnumpy() for cell, given in zip(cells, inputs, strict=True)]

    ours = computed(np.ascontiguousarray(x.transpose(2, 0, 1)))
    ours[0] = ours[0].transpose(1, 2, 0)
    monkeypatch.setattr(backend, "_on_ascend", True)
    for found, native in zip(ours, computed(x), strict=True):
        assert relative_error(found, native) < 2e-6


def test_cells_alike_are_one() -> None:
    assert ops.layer_norm(24, 1e-5) is ops.layer_norm(24, 1e-5)
    assert ops.layer_norm(24, 1e-5) is not ops.layer_norm(24, 1e-6)


class Filled(nn.Cell):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return 0.0 * x + self.value


@modes
@pytest.mark.parametrize("make", [ops.layer_norm, ops.group_norm])
def test_many_small_operators_are_for_graphs_only(make: Callable, graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = make(8, 0.001)
    for value, name in enumerate(("native", "composed")):
        monkeypatch.setitem(cell._cells, name, Filled(value))
    x, gamma = Tensor(normal(1, 8, 8, 1, 3)), Tensor(normal(2, 8))
    assert (backend.compile_cell(cell, graph)(x, gamma, gamma).asnumpy() == graph).all()
