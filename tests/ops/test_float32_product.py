"""gm/ops/float32_product.py through `gm.ops.projection` in graphs, against PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from gm import ops as gm_ops
from gm.ops import float32_product
from gm.ops.linear import _Projection
from tests.onednn_operators import flash_attention_operators, no_operators
from tests.ops.gradients import compare
from tests.reference.inputs import normal, relative_error

pytestmark = [pytest.mark.reference, pytest.mark.graph]


@pytest.fixture(scope="module", autouse=True)
def available() -> Iterator[bool]:
    with flash_attention_operators() as there:
        yield there


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    ("outputs", "channels", "n", "tokens"), [(8, 5, 1, 1), (7, 12, 3, 5), (640, 320, 1, 77), (96, 200, 2, 300)]
)
def test_value_and_gradients(outputs: int, channels: int, n: int, tokens: int, has_bias: bool) -> None:
    """Those of weight and bias, too, with which the tiny models are trained."""

    def expected(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        y = torch.einsum("ok,knl->onl", weight, x)
        return y if bias is None else y + bias.reshape(-1, 1, 1)

    weight = normal(2, outputs, channels) / np.float32(channels**0.5)
    inputs = [normal(1, channels, n, tokens), weight, *([normal(3, outputs)] if has_bias else [])]
    operators = float32_product.project()
    cell = gm_ops.projection() if operators is None else operators.with_bias if has_bias else operators.without_bias
    compare(cell, expected, True, *inputs)


def test_they_are_used_where_they_are_there(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (float32_product.project() is not None) == available
    with no_operators():
        assert float32_product.project() is None
    calls = []

    class Counted(nn.Cell):
        def construct(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            calls.append(x.shape)
            return x

    projection = _Projection(False, False)
    projection.project_float32 = Counted()
    x, weight = Tensor(normal(1, 6, 2, 3)), normal(2, 6, 6)
    projection(x, Tensor(weight), None)  # in PyNative mode the weight's gradient would be computed in vain
    monkeypatch.setattr("gm.runtime.backend.in_graph", lambda: True)
    y = projection(x, Tensor(weight.astype(np.float16)), None)
    assert not calls
    assert relative_error(y.asnumpy(), np.einsum("ok,knl->onl", weight, x.asnumpy())) < 1e-3
    projection(x, Tensor(weight), None)
    assert calls == [(6, 2, 3)]
