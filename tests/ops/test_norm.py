"""gm/ops/norm.py against PyTorch: values and gradients, in both modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from gm import ops
from gm.ops import layout
from gm.runtime import backend
from tests.onednn_operators import no_operators
from tests.ops.gradients import compare, modes
from tests.ops.stand_ins import StandIns
from tests.reference.inputs import normal, relative_error

pytestmark = pytest.mark.reference


@pytest.fixture(autouse=True)
def composed() -> Iterator[None]:
    """Test the compositions; test_fused.py has the operators that replace them."""
    with no_operators():
        yield


@modes
@pytest.mark.parametrize(("n", "length"), [(1, 7), (3, 5), (1, 1)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_layer_norm(graph: bool, n: int, length: int, offset: float) -> None:
    """A mean of thirty standard deviations costs no precision: it is subtracted before squaring."""
    x = normal(1, 24, n, length) + np.float32(offset)
    gamma, beta = 1.0 + 0.1 * normal(2, 24), normal(3, 24)

    def expected(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.layer_norm(x.permute(1, 2, 0), (24,), gamma, beta, 1e-5)
        return y.permute(2, 0, 1)

    if offset:
        x = np.round(x * 64) / np.float32(64)  # so that the sums themselves are exact
    compare(ops.layer_norm(24, 1e-5), expected, graph, x, gamma, beta)


@modes
@pytest.mark.parametrize("shape", [(1, 12, 5, 7), (3, 12, 4, 4), (2, 12, 1, 1)])
@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_group_norm(graph: bool, shape: tuple[int, ...], epsilon: float) -> None:
    gamma, beta = 1.0 + 0.1 * normal(2, 12), normal(3, 12)

    def expected(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.group_norm(x, 3, gamma, beta, epsilon)

    compare(ops.group_norm(3, epsilon), expected, graph, 2.0 + normal(1, *shape), gamma, beta)


@modes
def test_softmax(graph: bool) -> None:
    compare(ops.softmax(), lambda x: torch.softmax(x, dim=-1), graph, 5.0 * normal(1, 2, 3, 4, 11))


def test_ascend_uses_its_kernels(stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    """They compute the same, in the layout with tokens first."""
    x, gamma, beta = normal(1, 2, 5, 24), 1.0 + 0.1 * normal(2, 24), normal(3, 24)
    image = normal(4, 2, 24, 4, 4)

    def results(x: np.ndarray) -> list[np.ndarray]:
        weights = Tensor(gamma), Tensor(beta)
        return [
            ops.layer_norm(24, 1e-5)(Tensor(x), *weights).asnumpy(),
            ops.group_norm(3, 1e-5)(Tensor(image), *weights).asnumpy(),
            ops.softmax()(Tensor(image)).asnumpy(),
        ]

    on_cpu = results(np.ascontiguousarray(x.transpose(2, 0, 1)))
    on_cpu[0] = on_cpu[0].transpose(1, 2, 0)
    monkeypatch.setattr(backend, "_on_ascend", True)
    for result, native in zip(on_cpu, results(x), strict=True):
        assert relative_error(result, native) < 2e-6
    assert stand_ins.calls == ["layer_norm"]


@pytest.mark.parametrize("device", ["CPU", "Ascend"])
def test_half_precision_is_normalised_in_float32(
    device: str, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Squares of these inputs overflow float16."""
    monkeypatch.setattr(backend, "_on_ascend", device == "Ascend")
    tokens, image = 300.0 * normal(1, 2, 5, 24), 300.0 * normal(2, 2, 24, 4, 4)
    dtype = ops.group_norm_weight_dtype(ms.float16)
    assert dtype == (ms.float16 if device == "Ascend" else ms.float32)
    gamma, beta = Tensor(1.0 + 0.1 * normal(3, 24)), Tensor(normal(4, 24))
    x = layout.from_tokens(Tensor(tokens, ms.float16))
    normalised = layout.to_tokens(ops.layer_norm(24, 1e-5)(x, gamma, beta))
    expected = torch.nn.functional.layer_norm(*map(torch.from_numpy, (tokens,)), (24,), *weights(gamma, beta), 1e-5)
    assert normalised.dtype == ms.float16
    np.testing.assert_allclose(normalised.asnumpy(), expected.numpy(), atol=4e-3)
    normalised = ops.group_norm(3, 1e-5)(Tensor(image, ms.float16), gamma.astype(dtype), beta.astype(dtype))
    expected = torch.nn.functional.group_norm(torch.from_numpy(image), 3, *weights(gamma, beta), 1e-5)
    assert normalised.dtype == ms.float16
    np.testing.assert_allclose(normalised.asnumpy(), expected.numpy(), atol=4e-3)


def weights(*tensors: Tensor) -> list[torch.Tensor]:
    return [torch.from_numpy(tensor.asnumpy()) for tensor in tensors]


def test_equal_cells_are_shared() -> None:
    assert ops.layer_norm(24, 1e-5) is ops.layer_norm(24, 1e-5)
    assert ops.layer_norm(24, 1e-5) is not ops.layer_norm(24, 1e-6)


class Constant(nn.Cell):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return 0.0 * x + self.value


@modes
@pytest.mark.parametrize("make", [ops.layer_norm, ops.group_norm])
def test_composed_operators_run_in_graphs_only(make: Callable, graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = make(8, 0.001)
    for value, name in enumerate(("native", "composed")):
        monkeypatch.setitem(cell._cells, name, Constant(value))
    x, gamma = Tensor(normal(1, 8, 8, 1, 3)), Tensor(normal(2, 8))
    assert (backend.compile_cell(cell, graph)(x, gamma, gamma).asnumpy() == graph).all()
