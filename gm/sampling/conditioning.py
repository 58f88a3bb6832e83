"""Readings of prompts → what steers the UNet: the context of all chunks and the class vector."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gm.embeddings.embedding import LoadedEmbeddings
from gm.models.sdxl import SDXL
from gm.runtime.backend import Backend, compile_cell
from gm.text import chunks
from gm.text.chunks import Chunk, TokenChunks
from gm.text.tokenizer import pool_positions

Told = Sequence[float] | Sequence[Sequence[float]]  # the sizes, of all texts alike or of each


class _Condition(nn.Cell):
    """The model's conditioner, to be compiled for itself: elsewhere it is part of a larger graph."""

    def __init__(self, model: SDXL) -> None:
        super().__init__(auto_prefix=False)
        self.conditioner = model.conditioner

    def construct(self, pool_position: Tensor, sizes: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        # A graph takes tensors one by one: the ids of each encoder, then the vectors of each.
        count = len(tokens) // 2
        return self.conditioner(tokens[:count], tokens[count:], pool_position, sizes)


class PromptEncoder:
    """A model ready to read; the graph of its encoders is compiled once for each number of texts."""

    def __init__(self, model: SDXL, backend: Backend, pooling: str) -> None:
        self.model, self.pooling = model, pooling
        self.condition = compile_cell(_Condition(model), backend.graph, "the text encoders")

    def of(self, variants: Sequence[TokenChunks], words: LoadedEmbeddings, told: Told) -> tuple[Tensor, Tensor]:
        """Return the context [N, positions · chunks, C] and the vector [N, V] of N texts.

        Texts of fewer chunks than the longest get empty ones. The pooled part of the vector is that of the first
        chunk, as in AUTOMATIC1111 and ComfyUI. Where a token weighs w, its context c is replaced by e + w (c - e), with
        e that of the empty prompt at its place, as in ComfyUI; the vector is not weighted.
        """
        count = max(map(len, variants))
        columns = zip(*(chunks.pad_chunks(variant, count) for variant in variants), strict=True)
        read = [self._emphasised(column, words, told) for column in columns]
        return ops.concat([context for context, _ in read], axis=1), read[0][1]

    def nothing(self, like: Tensor, words: LoadedEmbeddings, told: Told) -> tuple[Tensor, Tensor]:
        """Return context and vector of no prompt, as many and as long as the context `like` [N, L, C].

        SDXL was trained with dropped captions as zeros, in the context and in the pooled part of the vector.
        """
        _, vector = self._plain([Chunk()] * len(like), words, told)
        pooled = self.model.config.text_encoder_2.width
        zeros = ops.zeros((len(like), pooled), vector.dtype)
        return ops.zeros_like(like), ops.concat((zeros, vector[:, pooled:]), axis=1)

    def _emphasised(self, column: Sequence[Chunk], words: LoadedEmbeddings, told: Told) -> tuple[Tensor, Tensor]:
        """Return context [N, positions, C] and vector [N, V] of a chunk of each text."""
        context, vector = self._plain(column, words, told)
        if all(weight == 1 for chunk in column for weight in chunk.weights):
            return context, vector
        # Of the same shape as the chunks, so that the same graph serves.
        empty, _ = self._plain([Chunk()] * len(column), words, told)
        weights = Tensor(chunks.to_arrays(column, words.tokenizer.context_length)[1]).expand_dims(-1)
        c, e = ops.cast(context, ms.float32), ops.cast(empty, ms.float32)
        # Said so, a weight of 1 changes no bit.
        return ops.cast(c + (weights - 1) * (c - e), context.dtype), vector

    def _plain(self, column: Sequence[Chunk], words: LoadedEmbeddings, told: Told) -> tuple[Tensor, Tensor]:
        ids, _ = chunks.to_arrays(column, words.tokenizer.context_length)
        sizes = np.atleast_2d(np.asarray(told, np.float32))
        sizes = np.ascontiguousarray(np.broadcast_to(sizes, (len(column), sizes.shape[1])))
        positions = pool_positions(ids["clip_g"], self.pooling)
        names = self.model.config.text_encoders
        tokens = [ids[name] for name in names] + [words.vectors[name] for name in names]
        return self.condition(*map(Tensor, (positions, sizes, *tokens)))
