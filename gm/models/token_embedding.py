"""The token table of a text encoder, extended by the few rows that are being learned.

The frozen table keeps its published shape and the learned rows come in as an argument: no concatenated copy of the
table, no table in the optimizer, no old rows to put back after a step, and a model serves any number of concepts.
The idea of a small trainable extension is that of refiners' `foundationals/clip/concepts.py`.
"""

from __future__ import annotations

from mindspore import Tensor, ops

from gm.models.layers import FrozenEmbedding


class TokenEmbedding(FrozenEmbedding):
    """ids [N, L] int32 and rows [n, width] float32 → [N, L, width]; id `vocabulary + k` is row k."""

    def construct(self, ids: Tensor, rows: Tensor) -> Tensor:
        vocabulary, n = self.embedding_table.shape[0], rows.shape[0]
        known = ops.cast(ops.gather(self.embedding_table, ops.clamp(ids, 0, vocabulary - 1), 0), self.dtype)
        learned = ops.gather(ops.cast(rows, self.dtype), ops.clamp(ids - vocabulary, 0, n - 1), 0)
        return ops.select(ops.expand_dims(ids >= vocabulary, -1).broadcast_to(known.shape), learned, known)
