"""gm/ops/gelu.py against PyTorch: values and gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from mindspore import Tensor

from gm import ops as gm_ops
from gm.runtime import backend
from tests.onednn_operators import no_operators
from tests.ops.gradients import modes, torch_value_and_gradients, value_and_gradients
from tests.ops.stand_ins import StandIns

pytestmark = pytest.mark.reference


@pytest.fixture(autouse=True)
def composed() -> Iterator[None]:
    """Test the compositions; test_fused.py has the operators that replace them."""
    with no_operators():
        yield


@modes
def test_value_and_gradient(graph: bool) -> None:
    random = np.random.default_rng(0)
    x = np.concatenate([3 * random.standard_normal(10000), np.linspace(-8, 8, 10001), [-1e4, -40, 40, 1e4]])
    x = x.astype(np.float32)
    ones = np.ones_like(x)
    expected, (expected_gradient,) = torch_value_and_gradients(torch.nn.functional.gelu, ones, x)
    out, (gradient,) = value_and_gradients(gm_ops.gelu(), graph, ones, x)
    assert np.abs(out - expected).max() < 2e-6
    assert np.abs(gradient - expected_gradient).max() < 4e-6  # measured: 2e-6


def test_half_precision_does_not_overflow() -> None:
    x = np.linspace(-1000, 1000, 999).astype(np.float16)
    expected = torch.nn.functional.gelu(torch.from_numpy(x).float()).half().numpy()
    np.testing.assert_allclose(gm_ops.gelu()(Tensor(x)).asnumpy(), expected, rtol=1e-3, atol=1e-6)


def test_ascend_uses_its_kernel(stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    x = Tensor(np.linspace(-5, 5, 101).astype(np.float32))
    on_cpu = gm_ops.gelu()(x).asnumpy()
    monkeypatch.setattr(backend, "_on_ascend", True)
    np.testing.assert_allclose(gm_ops.gelu()(x).asnumpy(), on_cpu, atol=2e-6)
    assert stand_ins.calls == ["gelu"]
