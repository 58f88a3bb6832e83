"""Comparison of a Cell's value and gradients with PyTorch's, in one graph."""

from __future__ import annotations

import functools
from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from gm.runtime import backend
from tests.reference.inputs import normal, relative_error

modes = pytest.mark.parametrize(
    "graph", [pytest.param(False, id="pynative"), pytest.param(True, id="graph", marks=pytest.mark.graph)]
)


class _WeightedSum(nn.Cell):
    """Returns (Σ cell(*inputs) · weights, cell(*inputs))."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__(auto_prefix=False)  # tests share networks, whose parameters keep their names
        self.cell = cell

    def construct(self, weights: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        out = self.cell(*inputs)
        return (out * weights).sum(), out


class ValueAndGrad(nn.Cell):
    """weights, *inputs → (cell(*inputs), gradients of Σ cell(*inputs) · weights in the inputs)."""

    def __init__(self, cell: nn.Cell, num_inputs: int) -> None:
        super().__init__()
        positions = tuple(range(1, 1 + num_inputs))
        self.value_and_grad = ms.value_and_grad(_WeightedSum(cell), positions, weights=None, has_aux=True)

    def construct(self, *arguments: Tensor) -> tuple:
        (_, out), gradients = self.value_and_grad(*arguments)
        return out, gradients


@functools.cache
def _compiled(cell: nn.Cell, num_inputs: int, graph: bool) -> Callable:
    """Return the compiled `ValueAndGrad`, shared by cases with the same cell: each shape is compiled once."""
    return backend.compile_cell(ValueAndGrad(cell, num_inputs), graph)


def value_and_gradients(
    cell: nn.Cell, graph: bool, weights: np.ndarray, *inputs: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return cell(*inputs) and the gradients of Σ cell(*inputs) · weights."""
    out, gradients = _compiled(cell, len(inputs), graph)(Tensor(weights), *map(Tensor, inputs))
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    return out.asnumpy(), [gradient.asnumpy() for gradient in gradients]


def torch_value_and_gradients(
    function: Callable, weights: np.ndarray | None, *inputs: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the same of a PyTorch function."""
    tensors = [torch.from_numpy(x).requires_grad_() for x in inputs]
    out = function(*tensors)
    (out * torch.from_numpy(normal(9, *out.shape) if weights is None else weights)).sum().backward()
    return out.detach().numpy(), [tensor.grad.numpy() for tensor in tensors]


def compare(
    cell: nn.Cell,
    function: Callable,
    graph: bool,
    *inputs: np.ndarray,
    tolerance: float = 2e-6,
    gradient_tolerance: float = 1e-5,
) -> None:
    """Assert that value and gradients of `cell` are those of the PyTorch `function`."""
    expected, expected_gradients = torch_value_and_gradients(function, None, *inputs)
    out, gradients = value_and_gradients(cell, graph, normal(9, *expected.shape), *inputs)
    assert out.dtype == np.float32
    assert relative_error(out, expected) < tolerance
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert relative_error(gradient, expected_gradient) < gradient_tolerance
