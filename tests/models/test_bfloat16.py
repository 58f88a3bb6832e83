"""Models with bfloat16 weights on the CPU against the same in float32: output and gradient of the UNet, the context."""

from __future__ import annotations

from collections.abc import Iterator

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from gm.runtime import backend
from tests.onednn_operators import bfloat16_operators
from tests.ops.gradients import modes, torch_value_and_gradients, value_and_gradients
from tests.reference.case import filled
from tests.reference.inputs import normal, relative_error

OWN_ERROR = 2e-2  # of a whole network; 3e-2 of the gradient of like-sd1 come from rounding its weights alone


@pytest.fixture(scope="module")
def dtype() -> Iterator[ms.Type]:
    """bfloat16, or float32 where --precision bfloat16 falls back to it."""
    with bfloat16_operators() as available:
        yield ms.bfloat16 if available else ms.float32


class UNet(nn.Cell):
    """x, context (and y) → ε at fixed timesteps."""

    def __init__(self, model: nn.Cell, count: int) -> None:
        super().__init__(auto_prefix=False)
        self.unet = model.unet
        self.timesteps = Tensor(np.linspace(800.0, 100.0, count), ms.float32)

    def construct(self, x: Tensor, context: Tensor, y: Tensor | None = None) -> Tensor:
        return self.unet(x, self.timesteps, context, y)


def pytorch_errors(case, weights: np.ndarray, *inputs: np.ndarray) -> list[float]:
    """Return the errors of diffusers' UNet under PyTorch's bfloat16 autocast: of output and gradients."""

    def unet(x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return case.reference.unet(x, torch.linspace(800.0, 100.0, 2), context).sample.float()

    expected, expected_gradients = torch_value_and_gradients(unet, weights, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out, gradients = torch_value_and_gradients(unet, weights, *inputs)
    return [relative_error(*pair) for pair in zip([out, *gradients], [expected, *expected_gradients], strict=True)]


@modes
@pytest.mark.parametrize("name", ["reversed", "like-sd1"])
def test_output_and_gradient_of_the_unet(name, cases, dtype, graph):
    case = cases(name)
    unet = case.config.unet
    inputs = [normal(1, 2, unet.in_channels, 8, 8), normal(2, 2, 77, unet.context_dim)]
    if unet.adm_in_channels:
        inputs.append(normal(3, 2, unet.adm_in_channels))
    weights = normal(9, 2, unet.out_channels, 8, 8)
    expected, expected_gradients = value_and_gradients(UNet(case.model, 2), False, weights, *inputs)
    model = filled(case.config, case.weights, dtype)
    out, gradients = value_and_gradients(UNet(model, 2), graph, weights, *inputs)
    errors = [relative_error(*pair) for pair in zip([out, *gradients], [expected, *expected_gradients], strict=True)]
    assert errors[0] < OWN_ERROR
    if unet.adm_in_channels:
        assert max(errors[1:]) < OWN_ERROR
    else:
        limits = pytorch_errors(case, weights, *inputs)
        assert all(error < limit for error, limit in zip(errors, limits, strict=True))
    if dtype == ms.bfloat16:
        assert relative_error(out, expected) > 1e-4  # it did compute in bfloat16


def test_weights_are_bfloat16_and_the_rest_is_float32(cases, dtype):
    model = filled(cases("reversed").config, cases("reversed").weights, dtype)
    narrow = {p.name for p in model.get_parameters() if p.dtype != ms.float32}
    wide = {p.name for p in model.get_parameters()} - narrow
    if dtype == ms.bfloat16:
        assert all(name.endswith("weight") for name in narrow)
        assert not [n for n in wide if n.endswith(".weight") and "first_stage" not in n]
        assert any("embedding_table" in n for n in wide)
    else:
        assert not narrow


def test_setup_chooses_the_dtype_of_the_operators(dtype, caplog):
    from gm.config import RunConfig

    chosen = backend.setup(RunConfig(device_target="CPU", ms_mode=1, precision="bfloat16")).dtype
    backend.setup(RunConfig(device_target="CPU", ms_mode=1))
    assert chosen == dtype
    assert ("--precision bfloat16 is float32 here" in caplog.text) == (dtype == ms.float32)
