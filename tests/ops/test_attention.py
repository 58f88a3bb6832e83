"""gm/ops/attention.py against PyTorch, in both layouts."""

from __future__ import annotations

import importlib

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from gm import ops as gm_ops
from gm.ops import layout
from gm.runtime import backend
from tests.ops.gradients import compare, modes
from tests.ops.stand_ins import StandIns
from tests.reference.inputs import normal

attention_module = importlib.import_module("gm.ops.attention")  # `gm.ops.attention` is the function

HEADS = 3
WIDTH = 8  # of a head

pytestmark = pytest.mark.reference


class Attention(nn.Cell):
    """Attention over tokens [N, L, C]."""

    def __init__(self, causal: bool, upcast: bool = False) -> None:
        super().__init__()
        self.attention = gm_ops.attention(HEADS, causal, upcast)

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return layout.to_tokens(self.attention(*[layout.from_tokens(x) for x in (query, key, value)]))


def query_key_value(n: int, length: int, context_length: int, width: int = WIDTH) -> list[np.ndarray]:
    return [normal(k, n, size, width * HEADS) for k, size in enumerate((length, context_length, context_length))]


def torch_attention(*inputs: torch.Tensor, causal: bool) -> torch.Tensor:
    heads = [x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2) for x in inputs]
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


@pytest.mark.parametrize(
    ("option", "width", "dtype", "flash"),
    [
        ("auto", 16, ms.float16, True),
        ("on", 64, ms.float16, True),
        ("auto", 16, ms.float32, False),
        ("auto", 12, ms.float16, False),
        ("auto", 40, ms.float16, False),
        ("auto", 80, ms.float16, True),
        ("auto", 528, ms.float16, False),
        ("off", 16, ms.float16, False),
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_flash_attention_is_used_where_the_kernel_and_the_option_allow_it(
    causal: bool,
    option: str,
    width: int,
    dtype: object,
    flash: bool,
    layout_of: str,
    stand_ins: StandIns,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "_flash_attention", option if layout_of == "Ascend" else "off")
    inputs = query_key_value(2, 7, 7 if causal else 5, width)
    out = Attention(causal)(*[Tensor(x, dtype) for x in inputs]).asnumpy()
    expected = torch_attention(*map(torch.from_numpy, inputs), causal=causal).numpy()
    np.testing.assert_allclose(out.astype(np.float32), expected, atol=2e-2 if dtype == ms.float16 else 1e-5)
    assert stand_ins.calls == (["flash_attention_score"] if flash and layout_of == "Ascend" else [])


@pytest.mark.parametrize("dtype", [ms.float16, ms.float32])
def test_upcast_scores_do_not_overflow(dtype: object, layout_of: str) -> None:
    query, key, value = query_key_value(2, 7, 5)
    inputs = [Tensor(x, dtype) for x in (300 * query, 300 * key, value)]
    exact = [torch.from_numpy(x.asnumpy().astype(np.float32)) for x in inputs]
    expected = torch_attention(*exact, causal=False).numpy()
    out = Attention(False, upcast=True)(*inputs)
    assert out.dtype == dtype
    np.testing.assert_allclose(out.asnumpy(), expected, atol=2e-3 if dtype == ms.float16 else 1e-5)
    plain = Attention(False)(*inputs).asnumpy()
    assert np.isfinite(plain).all() == (dtype == ms.float32)
