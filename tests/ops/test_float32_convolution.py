"""gm/ops/float32_convolution.py through `gm.ops.convolution` in graphs, against PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gm import ops as gm_ops
from gm.ops import float32_convolution
from tests.onednn_operators import flash_attention_operators, no_operators
from tests.ops.gradients import compare
from tests.reference.inputs import normal

pytestmark = [pytest.mark.reference, pytest.mark.graph]


@pytest.fixture(scope="module", autouse=True)
def available() -> Iterator[bool]:
    with flash_attention_operators() as there:
        yield there


@pytest.mark.parametrize(
    ("n", "inputs", "outputs", "height", "width", "kernel"),
    [(1, 20, 32, 32, 32, 3), (2, 5, 7, 33, 40, 3), (1, 48, 16, 64, 64, 3), (1, 8, 4, 32, 40, 5), (1, 4, 20, 16, 16, 3)],
)
def test_value_and_gradients(n: int, inputs: int, outputs: int, height: int, width: int, kernel: int) -> None:
    """The last is below the number of pixels from which on they are used."""

    def expected(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, weight, bias, padding=kernel // 2)

    cell = gm_ops.convolution(outputs, kernel, (kernel // 2,) * 4, 1)
    weight = normal(2, outputs, inputs, kernel, kernel) / (kernel * inputs**0.5)
    compare(cell, expected, True, normal(1, n, inputs, height, width), weight, normal(3, outputs))


def test_they_are_used_where_they_are_there(available: bool) -> None:
    same = (1, 1, 1, 1)
    assert (float32_convolution.convolution(8, 3, same, 1) is not None) == available
    assert float32_convolution.convolution(8, 3, same, 2) is None
    assert float32_convolution.convolution(8, 3, (0, 1, 0, 1), 1) is None
    assert float32_convolution.convolution(8, 2, same, 1) is None
    with no_operators():
        assert float32_convolution.convolution(8, 3, same, 1) is None
