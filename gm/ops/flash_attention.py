"""Attention of the CPU whose scores are never in the memory: the operators of `flash_attention.cpp`.

Inputs and results are float32. In a network with weights in bfloat16 the products round their factors to it, as its
other products do; their sums and softmax are float32.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.ops.shared_cell import shared_cell
from gm.runtime import backend, onednn

_Shapes = tuple[Any, ...]


def flash_attention(in_bfloat16: bool = False) -> nn.Cell | None:
    """Return the Cell (query [N, heads, d, L], key, value [N, heads, d, S]) → [N, heads, d, L]; None if it is off.

    `in_bfloat16` is for where `gm.ops.bfloat16.available()`.
    """
    library = onednn.library()
    if not library or backend.on_ascend() or backend.flash_attention() == "off":
        return None
    return shared_cell(_FlashAttention, library, in_bfloat16)


def _shape_output(query: Any, key: Any, value: Any) -> _Shapes:
    return query, [*query[:2], 1, query[3]]


def _shape_gradients(query: Any, key: Any, value: Any, out: Any, log_sum: Any, dout: Any) -> _Shapes:
    return query, key, value


class _FlashAttention(nn.Cell):
    def __init__(self, library: str, in_bfloat16: bool) -> None:
        super().__init__()
        self.attend = shared_cell(_AttentionWithSums, library, in_bfloat16)

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.attend(query, key, value)[0]


class _AttentionWithSums(nn.Cell):
    """Attention, and the logarithm of the sum of each query's exponentials, which the backward pass needs."""

    def __init__(self, library: str, in_bfloat16: bool) -> None:
        super().__init__()
        forward = f"{library}:flash_attention" + ("_bfloat16" if in_bfloat16 else "")
        backward = f"{forward}_backward"
        self.forward = ops.Custom(forward, _shape_output, (ms.float32,) * 2, func_type="aot")
        self.backward = ops.Custom(backward, _shape_gradients, (ms.float32,) * 3, func_type="aot")

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward(query, key, value)

    def bprop(
        self, query: Tensor, key: Tensor, value: Tensor, out: tuple[Tensor, Tensor], dout: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.backward(query, key, value, out[0], out[1], dout[0])
