"""gm/ops/attention.py: the same numbers in either layout, as PyTorch computes them."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn, ops

from gm import ops as gm_ops
from gm.ops import attention, layout
from gm.runtime import backend
from tests.reference.inputs import normal, relative_error

HEADS = 3


class Attend(nn.Cell):
    """Attention over tokens [N, L, C]."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.attention = gm_ops.attention(HEADS, causal)

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return layout.to_tokens(self.attention(*[layout.from_tokens(x) for x in (query, key, value)]))


class Weighted(nn.Cell):
    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.cell = cell

    def construct(self, query: Tensor, key: Tensor, value: Tensor, weights: Tensor) -> Tensor:
        return (self.cell(query, key, value) * weights).sum()


class Slopes(nn.Cell):
    """The gradients of (cell(query, key, value) · weights).sum() with respect to the three."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.weighted = Weighted(cell)

    def construct(self, query: Tensor, key: Tensor, value: Tensor, weights: Tensor) -> tuple:
        return ms.grad(self.weighted, grad_position=(0, 1, 2))(query, key, value, weights)


def tokens(n: int, length: int, context: int) -> list[np.ndarray]:
    return [normal(k, n, size, 8 * HEADS) for k, size in enumerate((length, context, context))]


def by_pytorch(inputs: list[np.ndarray], causal: bool, weights: np.ndarray) -> list[np.ndarray]:
    """Return the attention's result and the gradients with respect to its inputs."""
    given = [torch.from_numpy(x).requires_grad_() for x in inputs]
    heads = [x.reshape(*x.shape[:2], HEADS, 8).transpose(1, 2) for x in given]
    out = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=causal)
    out = out.transpose(1, 2).reshape(given[0].shape)
    (out * torch.from_numpy(weights)).sum().backward()
    return [out.detach().numpy(), *(x.grad.numpy() for x in given)]


@pytest.mark.parametrize("graph", [False, True], ids=["pynative", "graph"])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_pytorchs(causal: bool, n: int, graph: bool, layout_of: str) -> None:
    inputs, weights = tokens(n, 7, 7 if causal else 5), normal(8, n, 7, 8 * HEADS)
    cell, given = Attend(causal), list(map(Tensor, inputs))
    found = [
        backend.compile_cell(cell, graph)(*given),
        *backend.compile_cell(Slopes(cell), graph)(*given, Tensor(weights)),
    ]
    for ours, theirs in zip(found, by_pytorch(inputs, causal, weights), strict=True):
        assert relative_error(ours.asnumpy(), theirs) < 1e-5


@pytest.mark.parametrize("graph", [False, True], ids=["pynative", "graph"])
def test_attention_in_pieces_is_the_same(graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given = list(map(Tensor, tokens(2, 7, 5)))
    whole = Attend(False)(*given).asnumpy()
    pieces = []
    real = attention._Attention._whole
    monkeypatch.setattr(attention, "_LARGEST_SCORES", 3 * 2 * HEADS * 5)  # three of the seven queries at once
    if not graph:
        monkeypatch.setattr(attention._Attention, "_whole", lambda *a: pieces.append(a[1].shape[3]) or real(*a))
    found = backend.compile_cell(Attend(False), graph)(*given).asnumpy()
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-7)
    assert pieces == ([] if graph else [3, 3, 1])


def flash_by_its_documentation(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    attn_mask: Tensor | None,
    scalar_value: float,
    **layout: str,
) -> Tensor:
    """What the operator is documented to compute: the mask marks what to discard, the scale is explicit."""
    assert layout == {"input_layout": "BNSD"}
    assert head_num == query.shape[1]
    q, k, v = (x.asnumpy().astype(np.float64) for x in (query, key, value))
    scores = q @ k.swapaxes(-1, -2) * scalar_value
    if attn_mask is not None:
        assert attn_mask.dtype in (ms.uint8, ms.bool_)
        scores = np.where(attn_mask.asnumpy().astype(bool), -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return Tensor((weights / weights.sum(-1, keepdims=True) @ v).astype(np.float16))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [ms.float16, ms.float32])
def test_the_flash_kernel_serves_half_precision_on_ascend_only(
    causal: bool, dtype: object, layout_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def flash(*arguments: object, **more: object) -> Tensor:
        called.append("flash")
        return flash_by_its_documentation(*arguments, **more)

    monkeypatch.setattr(ops, "flash_attention_score", flash)
    inputs = tokens(2, 7, 7 if causal else 5)
    found = Attend(causal)(*[Tensor(x, dtype) for x in inputs]).asnumpy()
    expected = by_pytorch(inputs, causal, normal(8, 2, 7, 8 * HEADS))[0]
    np.testing.assert_allclose(found.astype(np.float32), expected, atol=1e-2 if dtype == ms.float16 else 1e-5)
    assert called == (["flash"] if (layout_of, dtype) == ("Ascend", ms.float16) else [])
