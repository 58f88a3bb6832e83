"""gm/ops/flash_attention.py through `gm.ops.attention`, against PyTorch.

Where the operators are missing, attention is composed of products and softmax, and the same bounds hold. Products in
bfloat16 are compared with those of factors in float32, and with PyTorch's attention in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from gm import ops as gm_ops
from gm.ops.flash_attention import flash_attention
from gm.runtime import backend, onednn
from tests.onednn_operators import bfloat16_operators, flash_attention_operators
from tests.ops.gradients import modes, torch_value_and_gradients, value_and_gradients
from tests.reference.inputs import normal, relative_error

pytestmark = pytest.mark.reference

ERROR = 2e-6


@pytest.fixture(scope="module", autouse=True)
def available() -> Iterator[bool]:
    with flash_attention_operators() as there:
        yield there


class Attention(nn.Cell):
    def __init__(self, heads: int, dtype: object = ms.float32, upcast: bool = False) -> None:
        super().__init__()
        self.attend = gm_ops.attention(heads, upcast=upcast, dtype=dtype)

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.attend(query, key, value)


def check(graph: bool, n: int, heads: int, width: int, queries: int, keys: int, scale: float = 1.0) -> None:
    inputs = [normal(k, heads * width, n, length) for k, length in enumerate((queries, keys, keys))]
    inputs[0] *= scale

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(heads, width, n, -1).permute(2, 0, 3, 1)  # [N, heads, L, d]

    def expected(*sequences: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.scaled_dot_product_attention(*map(split, sequences))
        return y.permute(1, 3, 0, 2).reshape(heads * width, n, -1)

    weights = normal(9, heads * width, n, queries)
    out, gradients = value_and_gradients(Attention(heads), graph, weights, *inputs)
    wanted, wanted_gradients = torch_value_and_gradients(expected, weights, *inputs)
    assert relative_error(out, wanted) < ERROR * scale
    for gradient, other in zip(gradients, wanted_gradients, strict=True):
        assert relative_error(gradient, other) < ERROR * scale


@modes
def test_value_and_gradients(graph: bool) -> None:
    check(graph, n=2, heads=3, width=8, queries=300, keys=260)


@pytest.mark.parametrize(
    ("n", "heads", "width", "queries", "keys"),
    [
        (1, 1, 40, 1030, 256),  # one head, which all threads share
        (1, 2, 160, 128, 300),  # one whole block of queries
        (1, 3, 5, 1, 256),
        (2, 1, 64, 130, 5000),  # few queries at once, as they have many keys
        (1, 2, 8, 300, 40),  # composed: few keys
    ],
)
def test_sizes(n: int, heads: int, width: int, queries: int, keys: int) -> None:
    check(False, n, heads, width, queries, keys)


def test_large_scores_do_not_overflow() -> None:
    check(False, n=1, heads=2, width=8, queries=40, keys=256, scale=100.0)


def test_a_nan_reaches_output_and_gradients() -> None:
    query, key, value = (normal(k, 8, 1, 256) for k in range(3))
    key[3, 0, 200] = np.nan
    out, gradients = value_and_gradients(Attention(2), False, normal(9, 8, 1, 256), query, key, value)
    for result in (out, gradients[0], gradients[2]):  # the first head has the channels 0 to 3
        assert np.isnan(result[:4]).all()
        assert np.isfinite(result[4:]).all()


def test_two_runs_are_equal_to_the_bit() -> None:
    inputs = [normal(k, 40, 1, 1030) for k in range(3)]
    first, again = (value_and_gradients(Attention(1), False, normal(9, 40, 1, 1030), *inputs) for _ in range(2))
    for one, other in zip((first[0], *first[1]), (again[0], *again[1]), strict=True):
        assert np.array_equal(one, other)


def test_the_operators_are_used_where_they_are_there(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (flash_attention() is not None) == available
    inputs = [Tensor(normal(k, 24, 1, 300)) for k in range(3)]
    out = Attention(3)(*inputs).asnumpy()
    monkeypatch.setattr(backend, "_flash_attention", "off")
    assert flash_attention() is None
    composed = Attention(3)(*inputs).asnumpy()
    assert relative_error(out, composed) < ERROR
    assert np.array_equal(out, composed) != available


def test_networks_of_another_library_use_its_operators(
    available: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inputs = [Tensor(normal(k, 24, 1, 300)) for k in range(3)]
    out = Attention(3)(*inputs).asnumpy()
    library = onednn.library()
    monkeypatch.setattr(onednn, "_path", "")
    composed = Attention(3)(*inputs).asnumpy()
    assert relative_error(composed, out) < ERROR
    if available:
        copy = tmp_path / "copy.so"
        copy.write_bytes(Path(library).read_bytes())
        monkeypatch.setattr(onednn, "_path", str(copy))
        other = Attention(3)
        assert not np.array_equal(out, composed)
        assert str(copy) in str(other.attend.flash_attention.attend.forward)
        assert np.array_equal(other(*inputs).asnumpy(), out)


def test_half_precision_is_composed() -> None:
    inputs = [normal(k, 24, 1, 300) for k in range(3)]
    out = Attention(3)(*[Tensor(x, ms.float16) for x in inputs])
    assert out.dtype == ms.float16
    assert relative_error(out.asnumpy().astype(np.float32), Attention(3)(*map(Tensor, inputs)).asnumpy()) < 5e-3


@pytest.fixture
def in_bfloat16(available: bool) -> Iterator[bool]:
    """Whether the products of attention can be in bfloat16 here."""
    with bfloat16_operators() as there, pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_flash_attention", "auto")
        yield there and available


@modes
@pytest.mark.parametrize(("width", "queries", "keys"), [(8, 300, 260), (40, 130, 1100), (160, 20, 300)])
def test_products_in_bfloat16(in_bfloat16: bool, width: int, queries: int, keys: int, graph: bool) -> None:
    """As near to the exact attention as PyTorch's in bfloat16, and no nearer than bfloat16 is."""
    heads, n = 3, 2
    inputs = [normal(k, heads * width, n, length) for k, length in enumerate((queries, keys, keys))]
    weights = normal(9, heads * width, n, queries)

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(heads, width, n, -1).permute(2, 0, 3, 1)

    def attend(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
        def expected(*sequences: torch.Tensor) -> torch.Tensor:
            y = torch.nn.functional.scaled_dot_product_attention(*(split(x).to(dtype) for x in sequences)).float()
            return y.permute(1, 3, 0, 2).reshape(heads * width, n, -1)

        return expected

    exact, exact_gradients = torch_value_and_gradients(attend(torch.float32), weights, *inputs)
    torch_out, torch_gradients = torch_value_and_gradients(attend(torch.bfloat16), weights, *inputs)
    out, gradients = value_and_gradients(Attention(heads, ms.bfloat16), graph, weights, *inputs)
    for ours, theirs, right in zip(
        (out, *gradients), (torch_out, *torch_gradients), (exact, *exact_gradients), strict=True
    ):
        error = relative_error(ours, right)
        assert error < 1.2 * relative_error(theirs, right)
        assert (error > 1e-4) == in_bfloat16


def test_upcast_scores_are_float32_in_a_network_in_bfloat16(in_bfloat16: bool) -> None:
    inputs = [Tensor(normal(k, 24, 1, 300)) for k in range(3)]
    exact = Attention(3)(*inputs).asnumpy()
    assert np.array_equal(Attention(3, ms.bfloat16, upcast=True)(*inputs).asnumpy(), exact)
    assert np.array_equal(Attention(3, ms.bfloat16)(*inputs).asnumpy(), exact) != in_bfloat16
