"""gm/ops/fused.py through `gm.ops`, against PyTorch: values and gradients, those of gamma and beta included.

Where the operators are missing, the compositions are compared, and the same bounds hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from gm import ops as gm_ops
from gm.ops import fused, layout
from tests.onednn_operators import flash_attention_operators, no_operators
from tests.ops.gradients import compare, modes
from tests.reference.inputs import normal, relative_error

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module", autouse=True)
def available() -> Iterator[bool]:
    with flash_attention_operators() as there:
        yield there


def test_the_operators_are_used_where_they_are_there(available: bool) -> None:
    def made() -> list[bool]:
        operators = [fused.layer_norm(1e-5), fused.group_norm(2, 1e-5, True), fused.gelu(((0.0,) * 7,) * 2)]
        operators.append(fused.swap_leading_axes())
        return [operator is not None for operator in operators]

    assert made() == [available] * 4
    with no_operators():
        assert made() == [False] * 4


@modes
@pytest.mark.parametrize(
    ("channels", "n", "tokens"),
    [(24, 1, 7), (5, 3, 50), (320, 1, 64), (40, 2, 601), (1280, 1, 77)],  # a block of tokens, parts of one, several
)
def test_layer_norm(graph: bool, channels: int, n: int, tokens: int) -> None:
    def expected(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.layer_norm(x.permute(1, 2, 0), (channels,), gamma, beta, 1e-5)
        return y.permute(2, 0, 1)

    x = normal(1, channels, n, tokens) * np.float32(3.0) + np.float32(1.0)
    gamma, beta = 1.0 + 0.1 * normal(2, channels), normal(3, channels)
    compare(gm_ops.layer_norm(channels, 1e-5), expected, graph, x, gamma, beta)


@modes
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"), [((1, 12, 5, 7), 3), ((3, 8, 4, 4), 8), ((2, 32, 33, 31), 4), ((1, 64, 80, 96), 2)]
)
def test_group_norm(graph: bool, silu: bool, shape: tuple[int, ...], groups: int) -> None:
    def expected(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.group_norm(x, groups, gamma, beta, 1e-6)
        return torch.nn.functional.silu(y) if silu else y

    gamma, beta = 1.0 + 0.1 * normal(2, shape[1]), normal(3, shape[1])
    compare(gm_ops.group_norm(groups, 1e-6, silu), expected, graph, 2.0 + 3.0 * normal(1, *shape), gamma, beta)


@modes
@pytest.mark.parametrize("shape", [(3,), (8, 1, 5), (200, 2, 170)])
def test_gelu(graph: bool, shape: tuple[int, ...]) -> None:
    compare(gm_ops.gelu(), torch.nn.functional.gelu, graph, 4.0 * normal(1, *shape))


@modes
@pytest.mark.parametrize("shape", [(2, 1, 9), (8, 3, 5), (200, 2, 170)])
def test_geglu(graph: bool, shape: tuple[int, ...]) -> None:
    def expected(x: torch.Tensor) -> torch.Tensor:
        value, gate = x.chunk(2)
        return value * torch.nn.functional.gelu(gate)

    compare(gm_ops.geglu(), expected, graph, 4.0 * normal(1, *shape))


@modes
@pytest.mark.parametrize("composed", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 3), (2, 5, 7), (9, 2, 300), (40, 16, 65)])
def test_transpose_of_a_sequence(graph: bool, composed: bool, shape: tuple[int, ...]) -> None:
    with no_operators() if composed else contextlib.nullcontext():
        swap = layout.swap_leading_axes()
    compare(swap, lambda x: x.transpose(0, 1), graph, normal(1, *shape), tolerance=1e-12, gradient_tolerance=1e-12)


def test_the_graph_of_attention_does_not_grow_with_the_batch() -> None:
    """A slice for each image made sampling of 16 images compile five times as long as of one."""
    calls = []

    class Counted(nn.Cell):
        def construct(self, x: Tensor) -> Tensor:
            calls.append(x.shape)
            return x.transpose((1, 0, 2))

    swap = layout.swap_leading_axes()
    original, swap.operator = swap.operator, Counted()
    try:
        gm_ops.attention(heads=2)(*(Tensor(normal(k, 8, 16, 5)) for k in range(3)))
    finally:
        swap.operator = original
    assert calls == [(8, 16, 5)] * 3 + [(16, 8, 5)]


def test_extreme_values_saturate() -> None:
    """SiLU and GELU are 0 far below 0, and the identity far above; GELU's derivative is 0 and 1 there."""
    x = Tensor(np.array([-1e4, -100.0, 100.0, 1e4], np.float32))
    assert gm_ops.gelu()(x).asnumpy() == pytest.approx([0, 0, 100, 1e4], abs=1e-30)
    assert ms.grad(gm_ops.gelu())(x).asnumpy() == pytest.approx([0, 0, 1, 1], abs=1e-6)
    beta = Tensor(np.array([-1e4, 1e4], np.float32))
    y = gm_ops.group_norm(1, 1e-5, True)(Tensor(normal(1, 1, 2, 1, 4)), Tensor(np.zeros(2, np.float32)), beta)
    assert y.asnumpy()[0, 0] == pytest.approx(0, abs=1e-30)
    assert y.asnumpy()[0, 1] == pytest.approx(1e4)


@pytest.mark.parametrize("at", [0, 70, 3000])
def test_a_nan_reaches_what_depends_on_it(at: int) -> None:
    """Other tokens, other groups and other values stay as they are."""
    x = normal(1, 16, 1, 3100)
    x[3, 0, at] = np.nan
    gamma, beta = Tensor(np.ones(16, np.float32)), Tensor(np.zeros(16, np.float32))
    tokens = np.isnan(gm_ops.layer_norm(16, 1e-5)(Tensor(x), gamma, beta).asnumpy())
    assert tokens[:, 0, at].all()
    assert tokens.sum() == 16
    image = Tensor(x.reshape(1, 16, 100, 31))
    for silu in (False, True):
        groups = np.isnan(gm_ops.group_norm(4, 1e-5, silu)(image, gamma, beta).asnumpy())
        assert groups[0, :4].all()
        assert not groups[0, 4:].any()
    assert np.isnan(gm_ops.gelu()(Tensor(x)).asnumpy()).sum() == 1
    assert np.isnan(gm_ops.geglu()(Tensor(x)).asnumpy()).sum() == 1


def test_a_result_does_not_differ_from_run_to_run() -> None:
    class Gradients(nn.Cell):
        def __init__(self, cell: nn.Cell) -> None:
            super().__init__()
            self.gradients = ms.grad(lambda x, gamma, beta: (cell(x, gamma, beta) * x).sum(), (0, 1, 2))

        def construct(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            return self.gradients(*inputs)

    inputs = [Tensor(x) for x in (normal(1, 32, 2, 40, 40), normal(2, 40), normal(3, 40))]
    sequence = [Tensor(normal(1, 40, 1, 2000)), *inputs[1:]]
    for cell, values in ((gm_ops.group_norm(8, 1e-5, True), inputs), (gm_ops.layer_norm(40, 1e-5), sequence)):
        if values is inputs:
            values = [Tensor(normal(1, 2, 40, 50, 50)), *inputs[1:]]
        first, *others = ([each.asnumpy() for each in Gradients(cell)(*values)] for _ in range(4))
        for other in others:
            assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_large_means_cost_little_precision() -> None:
    x = normal(1, 1, 32, 40, 40) + np.float32(100.0)
    gamma, beta = np.ones(32, np.float32), np.zeros(32, np.float32)
    expected = torch.nn.functional.group_norm(torch.from_numpy(x.astype(np.float64)), 4, eps=1e-5).numpy()
    y = gm_ops.group_norm(4, 1e-5)(Tensor(x), Tensor(gamma), Tensor(beta)).asnumpy()
    assert relative_error(y, expected) < 5e-6


def test_half_precision_is_normalised_in_float32() -> None:
    """Squares of these inputs overflow float16."""
    x = (300.0 * normal(1, 24, 2, 5)).astype(np.float16)
    gamma, beta = Tensor(np.ones(24, np.float32)), Tensor(np.zeros(24, np.float32))
    y = gm_ops.layer_norm(24, 1e-5)(Tensor(x), gamma, beta)
    expected = torch.nn.functional.layer_norm(torch.from_numpy(x).float().permute(1, 2, 0), (24,)).permute(2, 0, 1)
    assert y.dtype == ms.float16
    np.testing.assert_allclose(y.asnumpy(), expected.numpy(), atol=4e-3)
    large = Tensor(np.linspace(-1000, 1000, 998).astype(np.float16))
    value, gate = (half.float() for half in torch.from_numpy(large.asnumpy()).chunk(2))
    expected = (value * torch.nn.functional.gelu(gate)).half()
    np.testing.assert_allclose(gm_ops.geglu()(large).asnumpy(), expected.numpy(), rtol=2e-3, atol=1e-3)
