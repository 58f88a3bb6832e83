"""gm/ops/attention.py against PyTorch, in both layouts."""

from __future__ import annotations

import importlib

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn, ops

from gm import ops as gm_ops
from gm.ops import layout
from gm.runtime import backend
from tests.ops.gradients import compare, modes
from tests.reference.inputs import normal

attention_module = importlib.import_module("gm.ops.attention")  # `gm.ops.attention` is the function

HEADS = 3

pytestmark = pytest.mark.reference


class Attention(nn.Cell):
    """Attention over tokens [N, L, C]."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.attention = gm_ops.attention(HEADS, causal)

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return layout.to_tokens(self.attention(*[layout.from_tokens(x) for x in (query, key, value)]))


def query_key_value(n: int, length: int, context_length: int) -> list[np.ndarray]:
    return [normal(k, n, size, 8 * HEADS) for k, size in enumerate((length, context_length, context_length))]


def torch_attention(*inputs: torch.Tensor, causal: bool) -> torch.Tensor:
    heads = [x.reshape(*x.shape[:2], HEADS, 8).transpose(1, 2) for x in inputs]
    out = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=causal)
    return out.transpose(1, 2).reshape(inputs[0].shape)


@modes
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_value_and_gradients(causal: bool, n: int, graph: bool, layout_of: str) -> None:
    inputs = query_key_value(n, 7, 7 if causal else 5)
    compare(
        Attention(causal), lambda *tensors: torch_attention(*tensors, causal=causal), graph, *inputs, tolerance=1e-5
    )


@modes
def test_chunks_of_queries_give_the_same_result(graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = list(map(Tensor, query_key_value(2, 7, 5)))
    expected = Attention(False)(*inputs).asnumpy()
    chunks = []
    attend_chunk = attention_module._Attention._attend_chunk
    monkeypatch.setattr(attention_module, "_MAX_SCORES", 3 * 2 * HEADS * 5)  # three of the seven queries at once
    if not graph:
        monkeypatch.setattr(
            attention_module._Attention,
            "_attend_chunk",
            lambda *arguments: chunks.append(arguments[1].shape[3]) or attend_chunk(*arguments),
        )
    out = backend.compile_cell(Attention(False), graph)(*inputs).asnumpy()
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-7)
    assert chunks == ([] if graph else [3, 3, 1])


def documented_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    attn_mask: Tensor | None,
    scalar_value: float,
    **layout: str,
) -> Tensor:
    """Compute what the operator's documentation says: the mask marks scores to discard, the scale is explicit."""
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
def test_flash_attention_is_used_in_half_precision_on_ascend_only(
    causal: bool, dtype: object, layout_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def flash_attention_score(*arguments: object, **options: object) -> Tensor:
        calls.append("flash")
        return documented_flash_attention(*arguments, **options)

    monkeypatch.setattr(ops, "flash_attention_score", flash_attention_score)
    inputs = query_key_value(2, 7, 7 if causal else 5)
    out = Attention(causal)(*[Tensor(x, dtype) for x in inputs]).asnumpy()
    expected = torch_attention(*map(torch.from_numpy, inputs), causal=causal).numpy()
    np.testing.assert_allclose(out.astype(np.float32), expected, atol=1e-2 if dtype == ms.float16 else 1e-5)
    assert calls == (["flash"] if (layout_of, dtype) == ("Ascend", ms.float16) else [])
