"""gm/ops/gelu.py against PyTorch: values and gradients."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn, ops

from gm import ops as gm_ops
from gm.runtime import backend


class Slope(nn.Cell):
    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.slope = ms.grad(cell)

    def construct(self, x: Tensor) -> Tensor:
        return self.slope(x)


@pytest.mark.parametrize("graph", [False, True], ids=["pynative", "graph"])
def test_gelu(graph: bool) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([3 * rng.standard_normal(10000), np.linspace(-8, 8, 10001), [-1e4, -40, 40, 1e4]])
    x = x.astype(np.float32)
    inputs = torch.from_numpy(x).requires_grad_()
    values = torch.nn.functional.gelu(inputs)
    values.sum().backward()
    found = backend.compile_cell(gm_ops.gelu(), graph)(Tensor(x)).asnumpy()
    slope = backend.compile_cell(Slope(gm_ops.gelu()), graph)(Tensor(x)).asnumpy()
    assert np.abs(found - values.detach().numpy()).max() < 2e-6
    assert np.abs(slope - inputs.grad.numpy()).max() < 4e-6  # measured: 2e-6


def test_gelu_in_half_precision_overflows_nowhere() -> None:
    x = np.linspace(-1000, 1000, 999).astype(np.float16)
    expected = torch.nn.functional.gelu(torch.from_numpy(x).float()).half().numpy()
    np.testing.assert_allclose(gm_ops.gelu()(Tensor(x)).asnumpy(), expected, rtol=1e-3, atol=1e-6)


def test_ascend_has_the_native_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(backend, "_on_ascend", True)
    monkeypatch.setattr(ops, "gelu", lambda x, approximate: asked.append(approximate) or x)
    x = Tensor(np.ones(3, np.float32))
    assert gm_ops.gelu()(x) is x
    assert asked == ["none"]
