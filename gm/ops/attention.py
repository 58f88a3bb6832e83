"""Scaled dot-product attention between sequences, with several heads (Vaswani et al., 2017)."""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.ops import ascend, bfloat16, layout
from gm.ops.flash_attention import flash_attention
from gm.ops.norm import softmax
from gm.ops.shared_cell import shared_cell
from gm.runtime import backend
from gm.runtime.backend import DType

# Keys from which on the CPU's flash attention is faster. Measured on two cores, forward and backward, against products
# and softmax: 1.6 of the time for 77 keys, 0.2 to 0.7 for 256, 0.5 for 1,024 and 4,096.
_MIN_FLASH_KEYS = 256
_MAX_SCORES = 2**26  # attention scores in memory at once, in float32: 256 MiB


def attention(
    heads: int, causal: bool = False, upcast: bool = False, width: int | None = None, dtype: DType = ms.float32
) -> nn.Cell:
    """Return the Cell softmax(QKᵀ/√d)V: sequences of L queries, S keys and S values → a sequence of L tokens.

    d is the `width` of a head, by default that of the sequences; further channels are zero (`head_width`). `causal`
    masks later positions. Ascend's flash attention kernel computes it where `--flash_attention` and the card allow it,
    in half precision, for heads of a width that it takes. On the CPU, without `causal`, the operators of
    `gm.ops.flash_attention` do in float32 where they are there, with products in bfloat16 if the network's weights have
    this `dtype`. `upcast` computes QKᵀ in float32, as Ascend's kernel does, for networks whose scores overflow float16.
    """
    flash = backend.flash_attention() != "off"
    in_bfloat16 = dtype == ms.bfloat16 and bfloat16.available() and not upcast
    return shared_cell(_Attention, heads, causal, upcast, width, backend.on_ascend(), flash, in_bfloat16)


def head_width(width: int, dtype: DType) -> int:
    """Return the width, `width` or more, that heads should have in a network of `dtype`: what Ascend's kernel takes."""
    if backend.on_ascend() and backend.flash_attention() != "off" and dtype != ms.float32:
        return ascend.head_width(width)
    return width


class _Attention(nn.Cell):
    def __init__(
        self,
        heads: int,
        causal: bool,
        upcast: bool,
        width: int | None,
        on_ascend: bool,
        flash: bool,
        in_bfloat16: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.upcast = upcast
        self.width = width
        self.on_ascend = on_ascend
        self.flash = flash
        self.softmax = softmax()
        self.swap = layout.swap_leading_axes()
        self.flash_attention = flash_attention(in_bfloat16) if flash and not causal else None

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.flash and self.on_ascend and ascend.can_attend(query.shape[2] // self.heads, query.dtype):
            return ascend.flash_attention(query, key, value, self.heads, self.causal, self._scale(query.shape[2]))
        q, k, v = self._split_heads(query), self._split_heads(key), self._split_heads(value)
        is_padded = self.width is not None and self.width != q.shape[2]
        is_fast = q.dtype == ms.float32 and k.shape[3] >= _MIN_FLASH_KEYS
        if self.flash_attention is not None and is_fast and not is_padded:
            return self._merge_heads(self.flash_attention(q, k, v), query)
        return self._merge_heads(self._attend(q, k, v), query)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [N, heads, d, L], key and value [N, heads, d, S] → [N, heads, d, L], in chunks of queries."""
        n, heads, _, length = query.shape
        chunk = max(1, _MAX_SCORES // (n * heads * key.shape[3]))
        if self.causal or length <= chunk:
            return self._attend_chunk(query, key, value)
        chunks = [self._attend_chunk(query[:, :, :, i : i + chunk], key, value) for i in range(0, length, chunk)]
        return ops.concat(chunks, axis=3)

    def _attend_chunk(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.upcast:
            query, key = ops.cast(query, ms.float32), ops.cast(key, ms.float32)
        scores = ops.BatchMatMul(transpose_a=True)(query * self._scale(query.shape[1] * query.shape[2]), key)
        scores = ops.cast(scores, ms.float32)
        if self.causal:
            length = scores.shape[3]
            mask = ops.triu(ops.full((length, length), -1e9, dtype=ms.float32), diagonal=1)
            # Not a broadcast sum, for which the CPU backend stores an index of 8 bytes per element.
            flat = scores.reshape((-1, length * length))
            scores = ops.bias_add(flat, mask.reshape((-1,))).reshape(scores.shape)
        return ops.BatchMatMul(transpose_b=True)(value, ops.cast(self.softmax(scores), value.dtype))

    def _scale(self, channels: int) -> float:
        return 1.0 / math.sqrt(channels // self.heads if self.width is None else self.width)

    def _split_heads(self, x: Tensor) -> Tensor:
        """Convert a sequence to [N, heads, d, L]."""
        if self.on_ascend:
            n, length, channels = x.shape
            return x.reshape((n, length, self.heads, channels // self.heads)).transpose((0, 2, 3, 1))
        channels, n, length = x.shape
        return self.swap(x).reshape((n, self.heads, channels // self.heads, length))

    def _merge_heads(self, x: Tensor, like: Tensor) -> Tensor:
        """Convert x [N, heads, d, L] to a sequence of the shape of `like`."""
        if self.on_ascend:
            return x.transpose((0, 3, 1, 2)).reshape(like.shape)
        n, length = like.shape[1:]
        return self.swap(x.reshape((n, -1, length)))
