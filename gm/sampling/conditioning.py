"""Token chunks → the UNet's conditioning: the context of all chunks, and the class embedding y, if there is one."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gm.embeddings import adjustment
from gm.embeddings.embedding import LoadedEmbeddings
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime.backend import Backend, compile_cell
from gm.text import chunks
from gm.text.chunks import Chunk, TokenChunks
from gm.text.tokenizer import pool_positions

# Original height and width, crop top and left, target height and width (for a refiner an aesthetic score), of all texts
# alike or of each.
SizeConditioning = Sequence[float] | Sequence[Sequence[float]]


class PromptConditioner(nn.Cell):
    """The model's conditioner as a graph of its own; in training it is part of a larger one."""

    def __init__(self, model: StableDiffusion) -> None:
        super().__init__(auto_prefix=False)
        self.conditioner = model.conditioner

    def construct(self, pool_position: Tensor, sizes: Tensor, *tokens: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        # A graph takes tensors one by one: the ids of each encoder, then the embedding vectors of each.
        count = len(tokens) // 2
        context, y = self.conditioner(tokens[:count], tokens[count:], pool_position, sizes)
        # Not the pair with None: a graph that returns None cannot be cached ("Cannot export a PyExecute CNode").
        return context if y is None else (context, y)


class PromptEncoder:
    """A model's text encoders; their graph is compiled once for each number of texts."""

    def __init__(self, model: StableDiffusion, backend: Backend, pooling: str) -> None:
        self.model = model
        self.pooling = pooling
        self.conditioner = compile_cell(PromptConditioner(model), backend.graph, "the text encoders")

    def encode(
        self, texts: Sequence[TokenChunks], embeddings: LoadedEmbeddings, size_conditioning: SizeConditioning
    ) -> tuple[Tensor, Tensor | None]:
        """Return the context [N, positions · chunks, C] and the class embedding y [N, V] of N texts.

        Texts of fewer chunks than the longest get empty ones. The pooled part of y is that of the first chunk, as in
        AUTOMATIC1111 and ComfyUI. The context c of a token with weight w becomes e + w (c - e), where e is the context
        of the empty prompt at the token's position, as in ComfyUI; y is not weighted.
        """
        count = max(len(text) for text in texts)
        padded = [chunks.pad_chunks(text, count) for text in texts]
        encoded = [self._encode_weighted(column, embeddings, size_conditioning) for column in zip(*padded, strict=True)]
        _, y = encoded[0]
        return ops.concat([context for context, _ in encoded], axis=1), y

    def encode_unconditional(
        self, context: Tensor, embeddings: LoadedEmbeddings, size_conditioning: SizeConditioning
    ) -> tuple[Tensor, Tensor | None]:
        """Return the unconditional context and y, of the shape of `context` [N, L, C].

        SDXL's base model was trained with dropped captions as zeros, in the context and in the pooled part of y.
        """
        _, y = self._encode_chunks([Chunk()] * len(context), embeddings, size_conditioning)
        assert y is not None  # no other family has dropped captions as zeros
        *_, pooled_encoder = self.model.config.text_encoders.values()
        pooled = ops.zeros((len(context), pooled_encoder.width), y.dtype)
        return ops.zeros_like(context), ops.concat((pooled, y[:, pooled_encoder.width :]), axis=1)

    def _encode_weighted(
        self, column: Sequence[Chunk], embeddings: LoadedEmbeddings, size_conditioning: SizeConditioning
    ) -> tuple[Tensor, Tensor | None]:
        """Return context [N, positions, C] and y [N, V] of one chunk of each text, weights applied."""
        context, y = self._encode_chunks(column, embeddings, size_conditioning)
        if all(weight == 1 for chunk in column for weight in chunk.weights):
            return context, y
        # As many empty prompts as there are chunks, so that the same graph serves.
        empty, _ = self._encode_chunks([Chunk()] * len(column), embeddings, size_conditioning)
        _, weights = chunks.to_arrays(column, embeddings.tokenizer.context_length)
        c = ops.cast(context, ms.float32)
        e = ops.cast(empty, ms.float32)
        # In this form a weight of 1 changes no bit.
        return ops.cast(c + (Tensor(weights).expand_dims(-1) - 1) * (c - e), context.dtype), y

    def _encode_chunks(
        self, column: Sequence[Chunk], embeddings: LoadedEmbeddings, size_conditioning: SizeConditioning
    ) -> tuple[Tensor, Tensor | None]:
        """Return context [N, positions, C] and y [N, V] of one chunk of each text, without weights."""
        ids, _ = chunks.to_arrays(column, embeddings.tokenizer.context_length)
        sizes = np.atleast_2d(np.asarray(size_conditioning, np.float32))
        sizes = np.ascontiguousarray(np.broadcast_to(sizes, (len(column), sizes.shape[1])))
        names = list(self.model.config.text_encoders)
        pool_position = pool_positions(ids[names[-1]], self.pooling)
        vectors = adjustment.adjusted_vectors(embeddings, names, self._token_vectors)
        tokens = [ids[name] for name in names] + [vectors[name] for name in names]
        encoded = self.conditioner(Tensor(pool_position), Tensor(sizes), *map(Tensor, tokens))
        return encoded if isinstance(encoded, tuple) else (encoded, None)

    def _token_vectors(self, encoder: str, ids: Sequence[int]) -> np.ndarray:
        """Return the vectors of `ids` in a text encoder's token table, float32 [n, width]."""
        table = self.model.conditioner.token_embeddings()[encoder].embedding_table
        return ops.gather(table, Tensor(list(ids), ms.int32), 0).asnumpy().astype(np.float32)
