"""Attention between sequences, in heads."""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.ops import layout
from gm.ops.norm import softmax
from gm.ops.shared_cell import shared_cell
from gm.runtime import backend

_LARGEST_SCORES = 2**26  # attention scores held at once: a quarter of a gigabyte


def attention(heads: int, causal: bool = False) -> nn.Cell:
    """Return the Cell of softmax(QKᵀ/√d)V: sequences of L queries, S keys and S values → a sequence of L tokens.

    `causal` hides later positions. The flash kernel is Ascend's and takes half precision only.
    """
    return shared_cell(_Attention, heads, causal, backend.on_ascend())


class _Attention(nn.Cell):
    def __init__(self, heads: int, causal: bool, on_ascend: bool) -> None:
        super().__init__()
        self.heads, self.causal, self.on_ascend = heads, causal, on_ascend
        self.softmax = softmax()

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = self._apart(query), self._apart(key), self._apart(value)
        if self.on_ascend and query.dtype != ms.float32:
            q, k, v = q.swapaxes(2, 3), k.swapaxes(2, 3), v.swapaxes(2, 3)
            return self._joined(backend.flash_attention(q, k, v, self.causal).swapaxes(2, 3), query)
        return self._joined(self._attend(q, k, v), query)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend within every head: query [N, heads, d, L], key and value [N, heads, d, S] → [N, heads, d, L]."""
        n, heads, _, length = query.shape
        most = max(1, _LARGEST_SCORES // (n * heads * key.shape[3]))
        if self.causal or length <= most:
            return self._whole(query, key, value)
        pieces = [self._whole(query[:, :, :, i : i + most], key, value) for i in range(0, length, most)]
        return ops.concat(pieces, axis=3)

    def _whole(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = ops.BatchMatMul(transpose_a=True)(query * (1.0 / math.sqrt(query.shape[2])), key)
        scores = ops.cast(scores, ms.float32)
        if self.causal:
            length = scores.shape[3]
            later = ops.triu(ops.full((length, length), -1e9, dtype=ms.float32), diagonal=1)
            # Not a broadcast sum, of which the CPU backend keeps an index.
            flat = scores.reshape((-1, length * length))
            scores = ops.bias_add(flat, later.reshape((-1,))).reshape(scores.shape)
        return ops.BatchMatMul(transpose_b=True)(value, ops.cast(self.softmax(scores), value.dtype))

    def _apart(self, x: Tensor) -> Tensor:
        """Return a sequence as [N, heads, d, L]."""
        if self.on_ascend:
            n, length, channels = x.shape
            return x.reshape((n, length, self.heads, channels // self.heads)).transpose((0, 2, 3, 1))
        channels, n, length = x.shape
        return layout.swap_leading_axes(x).reshape((n, self.heads, channels // self.heads, length))

    def _joined(self, x: Tensor, like: Tensor) -> Tensor:
        """Return [N, heads, d, L] as a sequence."""
        if self.on_ascend:
            return x.transpose((0, 3, 1, 2)).reshape(like.shape)
        n, length = like.shape[1:]
        return layout.swap_leading_axes(x.reshape((n, -1, length)))
