"""Conditioner: token ids and size conditioning → the UNet's context and class embedding."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.config.model import ModelConfig, TextEncoderConfig
from gm.models.layers import SinusoidalEmbedding
from gm.models.text_encoders import CLIPTextEncoder, OpenCLIPTextEncoder
from gm.models.token_embedding import TokenEmbedding
from gm.runtime.backend import DType


class _CLIPEmbedder(nn.Cell):
    """Gives a CLIP encoder its published prefix, `transformer`."""

    def __init__(self, config: TextEncoderConfig, dtype: DType) -> None:
        super().__init__()
        self.transformer = CLIPTextEncoder(config, dtype)

    @property
    def token_embedding(self) -> TokenEmbedding:
        return self.transformer.text_model.embeddings.token_embedding


class _OpenCLIPEmbedder(nn.Cell):
    """Gives an OpenCLIP encoder its published prefix, `model`."""

    def __init__(self, config: TextEncoderConfig, dtype: DType) -> None:
        super().__init__()
        self.model = OpenCLIPTextEncoder(config, dtype)

    @property
    def token_embedding(self) -> TokenEmbedding:
        return self.model.token_embedding


_EMBEDDERS = {"clip_l": _CLIPEmbedder, "clip_g": _OpenCLIPEmbedder}


class _VectorEmbedding(nn.Cell):
    """Class embedding y (Podell et al., 2023): the pooled text, then a sinusoidal embedding of each size.

    pooled [N, width] and size_conditioning [N, n] float32 → [N, width + n · dim] float32.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.sinusoids = SinusoidalEmbedding(dim)

    def construct(self, pooled: Tensor, size_conditioning: Tensor) -> Tensor:
        sizes = self.sinusoids(size_conditioning.reshape((-1,))).reshape((size_conditioning.shape[0], -1))
        return ops.concat((ops.cast(pooled, ms.float32), sizes), axis=-1)


class Conditioner(nn.Cell):
    """Text encoders of a model, under their published names, and its class embedding.

    `embedders` are in the order of `config.text_encoders`: a base model has `embedders.0.transformer` (CLIP-L) and
    `embedders.1.model` (OpenCLIP bigG), a refiner has bigG alone, as `embedders.0.model`. Arguments, one tensor per
    encoder in the first two: token_ids [N, 77] int32 (they differ in padding only); embedding_vectors [n, width]
    float32, for the ids beyond the vocabulary; pool_position [N] int32; size_conditioning [N, 6] float32 (original
    height and width, crop top and left, target height and width, in pixels), for a refiner [N, 5] (the first four and
    an aesthetic score) → context [N, 77, sum of the widths] and y [N, adm_in_channels].

    For texts of K chunks token_ids are [N, K, 77], and the context [N, K · 77, sum of the widths]. The chunks are
    encoded alone; y is that of the first, in which pool_position is.
    """

    def __init__(self, config: ModelConfig, dtype: DType) -> None:
        super().__init__()
        self.vector_embedding = _VectorEmbedding(config.size_embedding_dim)
        self.names = tuple(config.text_encoders)
        self.has_clip_l = "clip_l" in config.text_encoders
        self.embedders = nn.CellList(
            [_EMBEDDERS[name](encoder, dtype) for name, encoder in config.text_encoders.items()]
        )

    def construct(
        self,
        token_ids: tuple[Tensor, ...],
        embedding_vectors: tuple[Tensor, ...],
        pool_position: Tensor,
        size_conditioning: Tensor,
    ) -> tuple[Tensor, Tensor]:
        if token_ids[-1].ndim == 2:
            context, pooled = self.encode(token_ids, embedding_vectors, pool_position)
            return context, self.vector_embedding(pooled, size_conditioning)
        n, num_chunks, length = token_ids[-1].shape
        chunks: tuple[Tensor, ...] = ()
        for ids in token_ids:
            chunks = (*chunks, ids.reshape((n * num_chunks, length)))
        positions = ops.expand_dims(pool_position, 1).broadcast_to((n, num_chunks)).reshape((n * num_chunks,))
        context, pooled = self.encode(chunks, embedding_vectors, positions)
        context = context.reshape((n, num_chunks * length, context.shape[-1]))
        pooled = pooled.reshape((n, num_chunks, pooled.shape[-1]))[:, 0]
        return context, self.vector_embedding(pooled, size_conditioning)

    def encode(
        self, token_ids: tuple[Tensor, ...], embedding_vectors: tuple[Tensor, ...], pool_position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the context [N, 77, C] and the pooled output [N, width] of sequences of tokens."""
        context, pooled = self.embedders[-1].model(token_ids[-1], embedding_vectors[-1], pool_position)
        if self.has_clip_l:
            hidden = self.embedders[0].transformer(token_ids[0], embedding_vectors[0])
            context = ops.concat((hidden, context), axis=-1)
        return context, pooled

    def token_embeddings(self) -> dict[str, TokenEmbedding]:
        """Return the token embedding of each text encoder by name."""
        return {name: embedder.token_embedding for name, embedder in zip(self.names, self.embedders, strict=True)}
