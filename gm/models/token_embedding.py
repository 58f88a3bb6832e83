"""Token embedding of a text encoder, extended by the embedding vectors of concepts.

The frozen table keeps its published shape, and the trained vectors are an argument. So the table is not concatenated in
every forward pass (405 MB at full size) and not part of the optimizer (810 MB of Adam state), no frozen vectors
are restored after a step, and one model serves any number of concepts. The idea of a small trainable extension follows
refiners' `foundationals/clip/concepts.py`.
"""

from __future__ import annotations

from mindspore import Tensor, ops

from gm.models.layers import FrozenEmbedding


class TokenEmbedding(FrozenEmbedding):
    """token_ids [N, L] int32 and embedding_vectors [n, width] float32 → [N, L, width].

    Id `vocabulary + k` selects embedding vector k.
    """

    def construct(self, token_ids: Tensor, embedding_vectors: Tensor) -> Tensor:
        vocabulary, n = self.embedding_table.shape[0], embedding_vectors.shape[0]
        table_ids = ops.clamp(token_ids, 0, vocabulary - 1)
        from_table = ops.cast(ops.gather(self.embedding_table, table_ids, 0), self.dtype)
        vector_ids = ops.clamp(token_ids - vocabulary, 0, n - 1)
        from_vectors = ops.gather(ops.cast(embedding_vectors, self.dtype), vector_ids, 0)
        is_vector = ops.expand_dims(token_ids >= vocabulary, -1).broadcast_to(from_table.shape)
        return ops.select(is_vector, from_vectors, from_table)
