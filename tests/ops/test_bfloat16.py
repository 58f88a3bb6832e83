"""gm/ops/bfloat16.py through the operators of the networks, with bfloat16 weights, against PyTorch.

Without the operators the weights are float32, as those of --precision bfloat16 then are, and the same bounds hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Parameter, Tensor, nn

from gm import ops
from gm.ops import bfloat16
from gm.runtime import backend, onednn
from tests.onednn_operators import bfloat16_operators, rounded
from tests.ops.gradients import modes, torch_value_and_gradients, value_and_gradients
from tests.reference.inputs import normal, relative_error

pytestmark = pytest.mark.reference

OWN_ERROR = 5e-3  # of a product of values rounded to 8 bits
EXACT = 2e-6  # of a float32 sum of products of the rounded values


@pytest.fixture(scope="module")
def available() -> Iterator[bool]:
    with bfloat16_operators() as there:
        yield there


def frozen(value: np.ndarray) -> Parameter:
    return Parameter(Tensor(value, ms.bfloat16 if onednn.has_bfloat16() else ms.float32), requires_grad=False)


class Weighted(nn.Cell):
    """An operator of x with frozen weight and bias (or None), and what else it takes."""

    def __init__(self, operator: nn.Cell, weight: np.ndarray, bias: np.ndarray | None, *rest: int) -> None:
        super().__init__()
        self.operator = operator
        self.weight = frozen(weight)
        self.bias = None if bias is None else Parameter(Tensor(bias), requires_grad=False)
        self.rest = rest

    def construct(self, x: Tensor) -> Tensor:
        return self.operator(x, self.weight, self.bias, *self.rest)


def check(cell: nn.Cell, function: Callable, graph: bool, available: bool, *inputs: np.ndarray) -> None:
    """Compare value and gradients with PyTorch: of float32, and with operators exactly of the rounded numbers."""
    shape = function(*map(torch.from_numpy, inputs)).shape
    weights = normal(9, *shape)
    out, gradients = value_and_gradients(cell, graph, weights, *inputs)
    assert out.dtype == np.float32
    expected, expected_gradients = torch_value_and_gradients(function, weights, *inputs)
    assert relative_error(out, expected) < OWN_ERROR
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert relative_error(gradient, wanted) < OWN_ERROR
    if available:
        exact = torch_value_and_gradients(function, rounded(weights), *map(rounded, inputs))
        assert relative_error(out, exact[0]) < EXACT
        for gradient, wanted in zip(gradients, exact[1], strict=True):
            assert relative_error(gradient, wanted) < EXACT


@modes
@pytest.mark.parametrize(("channels", "tokens", "has_bias"), [(96, 77, True), (5, 3, True), (40, 1, False)])
def test_projection(channels: int, tokens: int, has_bias: bool, graph: bool, available: bool) -> None:
    x, weight = normal(1, channels, 2, tokens), rounded(normal(2, 24, channels))
    bias = normal(3, 24) if has_bias else None
    offset = 0.0 if bias is None else torch.from_numpy(bias)[:, None, None]

    def expected(x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("oc,cnl->onl", torch.from_numpy(weight), x) + offset

    check(Weighted(ops.projection(), weight, bias), expected, graph, available, x)


@modes
def test_projections_of_images_by_the_weight_of_a_1x1_convolution(graph: bool, available: bool) -> None:
    x, weight, bias = normal(1, 2, 7, 4, 6), rounded(normal(2, 5, 7, 1, 1)), normal(3, 5)

    def expected(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, torch.from_numpy(weight), torch.from_numpy(bias))

    check(Weighted(ops.pointwise_convolution(5), weight, bias), expected, graph, available, x)


@modes
@pytest.mark.parametrize("size", [(6, 8), (1, 1), (2, 9), (5, 7), (5, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution(stride: int, size: tuple[int, int], graph: bool, available: bool) -> None:
    x, weight, bias = normal(1, 2, 3, *size), rounded(normal(2, 4, 3, 3, 3)), normal(3, 4)

    def expected(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, torch.from_numpy(weight), torch.from_numpy(bias), stride, 1)

    check(Weighted(ops.convolution(4, 3, (1, 1, 1, 1), stride), weight, bias), expected, graph, available, x)


def test_a_convolution_in_several_blocks(available: bool) -> None:
    """64 channels of 128 × 96 pixels and two images exceed what is unfolded at once."""
    x, weight, bias = normal(1, 2, 64, 128, 96), rounded(normal(2, 3, 64, 3, 3)), normal(3, 3)

    def expected(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, torch.from_numpy(weight), torch.from_numpy(bias), 1, 1)

    check(Weighted(ops.convolution(3, 3, (1, 1, 1, 1), 1), weight, bias), expected, False, available, x)


def test_a_product_of_vectors(available: bool) -> None:
    multiply = ops.vector_product(ms.bfloat16)
    assert (multiply is not None) == available
    assert ops.vector_product(ms.float32) is None
    x, weight = normal(1, 2, 9), rounded(normal(2, 6, 9))
    if multiply is not None:
        check(_Vectors(multiply, weight), lambda x: x @ torch.from_numpy(weight).T, False, True, x)


class _Vectors(nn.Cell):
    def __init__(self, multiply: nn.Cell, weight: np.ndarray) -> None:
        super().__init__()
        self.multiply = multiply
        self.weight = frozen(weight)

    def construct(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight)


def test_activations_are_float32_where_the_operators_are(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bfloat16.activation_dtype(ms.float16) == ms.float16
    assert bfloat16.activation_dtype(ms.bfloat16) == (ms.float32 if available else ms.bfloat16)
    monkeypatch.setattr(backend, "_on_ascend", True)
    assert bfloat16.activation_dtype(ms.bfloat16) == ms.bfloat16
