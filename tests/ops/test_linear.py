"""gm/ops/linear.py against PyTorch, with float32 weights and with weights stored in float16."""

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
from tests.ops.gradients import ValueAndGrad, compare, modes
from tests.ops.stand_ins import StandIns
from tests.reference.inputs import normal

weight_dtypes = pytest.mark.parametrize("dtype", [np.float16, np.float32])

pytestmark = pytest.mark.reference


def frozen(value: np.ndarray, name: str) -> Parameter:
    return Parameter(Tensor(value), name, requires_grad=False)


class Projections(nn.Cell):
    """Projections of tokens x [N, L, C] by a weight, and by the same weight as that of a 1×1 convolution, stacked."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray | None) -> None:
        super().__init__()
        self.weight = frozen(weight, "weight")
        self.conv_weight = frozen(weight[:, :, None, None], "conv_weight")
        self.bias = None if bias is None else frozen(bias, "bias")
        self.project = ops.projection()

    def construct(self, x: Tensor) -> Tensor:
        x = layout.from_tokens(x)
        by_matrix = layout.to_tokens(self.project(x, self.weight, self.bias))
        by_convolution = layout.to_tokens(self.project(x, self.conv_weight, self.bias))
        return ms.ops.stack((by_matrix, by_convolution))


class Convolution(nn.Cell):
    def __init__(self, weight: np.ndarray, bias: np.ndarray, padding: tuple[int, int, int, int], stride: int) -> None:
        super().__init__()
        self.weight = frozen(weight, "weight")
        self.bias = frozen(bias, "bias")
        self.convolve = ops.convolution(*weight.shape[:3:2], padding, stride)

    def construct(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight, self.bias)


@modes
@weight_dtypes
@pytest.mark.parametrize("has_bias", [False, True])
def test_projection(has_bias: bool, dtype: type, graph: bool, layout_of: str) -> None:
    x, weight, bias = normal(1, 2, 6, 5), normal(2, 8, 5).astype(dtype), normal(3, 8) if has_bias else None
    torch_weight = torch.from_numpy(weight.astype(np.float32))

    def expected(x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.linear(x, torch_weight, None if bias is None else torch.from_numpy(bias))
        return torch.stack((y, y))

    compare(Projections(weight, bias), expected, graph, x, gradient_tolerance=2e-6)


@modes
@weight_dtypes
@pytest.mark.parametrize(("padding", "stride"), [((1, 1, 1, 1), 1), ((1, 1, 1, 1), 2), ((0, 1, 0, 1), 2)])
def test_convolution(padding: tuple[int, int, int, int], stride: int, dtype: type, graph: bool) -> None:
    x, weight, bias = normal(1, 2, 3, 6, 7), normal(2, 4, 3, 3, 3).astype(dtype), normal(3, 4)
    torch_weight = torch.from_numpy(weight.astype(np.float32))
    top, bottom, left, right = padding

    def expected(x: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(x, (left, right, top, bottom))
        return torch.nn.functional.conv2d(padded, torch_weight, torch.from_numpy(bias), stride)

    compare(Convolution(weight, bias, padding, stride), expected, graph, x, gradient_tolerance=2e-6)


class ImageProjection(nn.Cell):
    """A projection of the pixels of x [N, C, H, W], and one of its tokens back to an image."""

    def __init__(self, weight: np.ndarray, back: np.ndarray, bias: np.ndarray, back_bias: np.ndarray) -> None:
        super().__init__()
        self.weight, self.bias = frozen(weight, "weight"), frozen(bias, "bias")
        self.back, self.back_bias = frozen(back, "back"), frozen(back_bias, "back_bias")
        self.from_image = ops.projection_from_image()
        self.to_image = ops.projection_to_image()

    def construct(self, x: Tensor) -> Tensor:
        tokens = self.from_image(x, self.weight, self.bias)
        return self.to_image(tokens * tokens, self.back, self.back_bias, *x.shape[2:])


class RepeatingMatMul(nn.Cell):
    """Batch product in which a matrix meets every matrix of the other side; the operator does so on Ascend only."""

    def __init__(self, transpose_a: bool) -> None:
        super().__init__()
        self.matmul = ms.ops.BatchMatMul(transpose_a=transpose_a, transpose_b=True)

    def construct(self, a: Tensor, b: Tensor) -> Tensor:
        n = max(a.shape[0], b.shape[0])
        return self.matmul(a.broadcast_to((n, *a.shape[1:])), b.broadcast_to((n, *b.shape[1:])))


@modes
@weight_dtypes
@pytest.mark.parametrize("n", [1, 2])
def test_projection_from_and_to_an_image(
    n: int, dtype: type, graph: bool, layout_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = normal(1, n, 5, 3, 4)
    weight, back = normal(2, 8, 5).astype(dtype), normal(3, 6, 8).astype(dtype)
    bias, back_bias = normal(4, 8), normal(5, 6)

    def expected(x: torch.Tensor) -> torch.Tensor:
        tokens = torch.from_numpy(weight.astype(np.float32)) @ x.flatten(2) + torch.from_numpy(bias)[:, None]
        y = torch.from_numpy(back.astype(np.float32)) @ tokens**2 + torch.from_numpy(back_bias)[:, None]
        return y.reshape(n, 6, 3, 4)

    cell = ImageProjection(weight, back, bias, back_bias)
    monkeypatch.setattr(cell.from_image, "matmul", RepeatingMatMul(True))
    monkeypatch.setattr(cell.to_image, "matmul", RepeatingMatMul(False))
    compare(cell, expected, graph, x, tolerance=4e-6)


@weight_dtypes
def test_pointwise_convolution(dtype: type, layout_of: str, stand_ins: StandIns) -> None:
    x, weight, bias = normal(1, 2, 5, 3, 4), normal(2, 8, 5, 1, 1).astype(dtype), normal(3, 8)
    y = ops.pointwise_convolution(8)(Tensor(x), frozen(weight, "weight"), frozen(bias, "bias")).asnumpy()
    torch_weight = torch.from_numpy(weight.astype(np.float32))
    expected = torch.nn.functional.conv2d(torch.from_numpy(x), torch_weight, torch.from_numpy(bias)).numpy()
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert stand_ins.calls == (["conv2d"] if (layout_of, dtype) == ("Ascend", np.float32) else [])


class Deep(nn.Cell):
    """Forty projections of 1024 × 1024, 4 MiB each in float32."""

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
def test_float32_copies_of_weights_are_freed(graph: bool) -> None:
    """Forty of them would take 160 MiB; without `Depend` a graph would store each from forward to backward."""
    x, weights = Tensor(normal(1, 1024, 1, 8)), Tensor(normal(2, 1024, 1, 8))
    value_and_grad = backend.compile_cell(ValueAndGrad(Deep(np.float16), 1), graph)
    peak = Peak()
    peak.reset()
    before = peak.read()
    _, gradients = value_and_grad(weights, x)
    (gradients[0] if isinstance(gradients, tuple) else gradients).asnumpy()
    assert peak.read() - before < 80 * 2**20
