"""Conditioner: token ids and size conditioning → the UNet's context and class embedding."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.config.model import ModelConfig
from gm.config.networks import TextEncoderConfig
from gm.models.layers import SinusoidalEmbedding
from gm.models.text_encoders import CLIPTextEncoder, OpenCLIPFinalTextEncoder, OpenCLIPTextEncoder
from gm.models.token_embedding import TokenEmbedding
from gm.runtime.backend import DType


class _CLIPEmbedder(nn.Cell):
    """Gives a CLIP encoder its published prefix, `transformer`.

    An embedder takes the ids and embedding vectors of its encoder and the positions to pool at, and returns hidden
    states and pooled output; the latter is None where the encoder has none.
    """

    def __init__(self, config: TextEncoderConfig, dtype: DType, final: bool) -> None:
        super().__init__()
        self.transformer = CLIPTextEncoder(config, dtype, final)

    def construct(
        self, token_ids: Tensor, embedding_vectors: Tensor, pool_position: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return self.transformer(token_ids, embedding_vectors), None

    def output(self, token_ids: Tensor, embedding_vectors: Tensor) -> Tensor:
        return self.transformer.output(token_ids, embedding_vectors)

    @property
    def token_embedding(self) -> TokenEmbedding:
        return self.transformer.text_model.embeddings.token_embedding


class _OpenCLIPEmbedder(nn.Cell):
    """Gives an OpenCLIP encoder its published prefix, `model`."""

    def __init__(self, config: TextEncoderConfig, dtype: DType, final: bool) -> None:
        super().__init__()
        self.final = final
        self.model = (OpenCLIPFinalTextEncoder if final else OpenCLIPTextEncoder)(config, dtype)

    def construct(
        self, token_ids: Tensor, embedding_vectors: Tensor, pool_position: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        if self.final:
            return self.model(token_ids, embedding_vectors), None
        return self.model(token_ids, embedding_vectors, pool_position)

    def output(self, token_ids: Tensor, embedding_vectors: Tensor) -> Tensor:
        return self.model.output(token_ids, embedding_vectors)

    @property
    def token_embedding(self) -> TokenEmbedding:
        return self.model.token_embedding


_EMBEDDERS = {"clip_l": _CLIPEmbedder, "clip_g": _OpenCLIPEmbedder, "clip_h": _OpenCLIPEmbedder}


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

    `embedders` are in the order of `config.text_encoders`: SDXL's base model has `embedders.0.transformer` (CLIP-L) and
    `embedders.1.model` (OpenCLIP bigG), its refiner bigG alone, as `embedders.0.model`; Stable Diffusion 1 has CLIP-L
    and 2 OpenCLIP ViT-H alone. Arguments, one tensor per encoder in the first two: token_ids [N, 77] int32 (they differ
    in padding only); embedding_vectors [n, width] float32, for the ids beyond the vocabulary; pool_position [N] int32;
    size_conditioning [N, 6] float32 (original height and width, crop top and left, target height and width, in pixels),
    for a refiner [N, 5] (the first four and an aesthetic score) → context [N, 77, sum of the widths] and
    y [N, adm_in_channels]. Without a class embedding y is None, and the last two arguments are not used.

    For texts of K chunks token_ids are [N, K, 77], and the context [N, K · 77, sum of the widths]. The chunks are
    encoded alone; y is that of the first, in which pool_position is.
    """

    def __init__(self, config: ModelConfig, dtype: DType) -> None:
        super().__init__()
        self.vector_embedding = _VectorEmbedding(config.size_embedding_dim) if config.has_class_embedding else None
        self.names = tuple(config.text_encoders)
        final = config.traits.final_hidden_state
        self.embedders = nn.CellList(
            [_EMBEDDERS[name](encoder, dtype, final) for name, encoder in config.text_encoders.items()]
        )

    def construct(
        self,
        token_ids: tuple[Tensor, ...],
        embedding_vectors: tuple[Tensor, ...],
        pool_position: Tensor,
        size_conditioning: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        if token_ids[-1].ndim == 2:
            context, pooled = self.encode(token_ids, embedding_vectors, pool_position)
            return context, self.embed_class(pooled, size_conditioning)
        n, num_chunks, length = token_ids[-1].shape
        chunks: tuple[Tensor, ...] = ()
        for ids in token_ids:
            chunks = (*chunks, ids.reshape((n * num_chunks, length)))
        positions = ops.expand_dims(pool_position, 1).broadcast_to((n, num_chunks)).reshape((n * num_chunks,))
        context, pooled = self.encode(chunks, embedding_vectors, positions)
        context = context.reshape((n, num_chunks * length, context.shape[-1]))
        if pooled is not None:
            pooled = pooled.reshape((n, num_chunks, pooled.shape[-1]))[:, 0]
        return context, self.embed_class(pooled, size_conditioning)

    def encode(
        self, token_ids: tuple[Tensor, ...], embedding_vectors: tuple[Tensor, ...], pool_position: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the context [N, 77, C] and the pooled output [N, width], the last encoder's, of token sequences."""
        hidden_states: tuple[Tensor, ...] = ()
        pooled = None
        for k in range(len(self.names)):
            hidden, pooled = self.embedders[k](token_ids[k], embedding_vectors[k], pool_position)
            hidden_states = (*hidden_states, hidden)
        context = hidden_states[0] if len(hidden_states) == 1 else ops.concat(hidden_states, axis=-1)
        return context, pooled

    def embed_class(self, pooled: Tensor | None, size_conditioning: Tensor) -> Tensor | None:
        """Return the class embedding y, if the model has one."""
        return None if self.vector_embedding is None else self.vector_embedding(pooled, size_conditioning)

    def token_embeddings(self) -> dict[str, TokenEmbedding]:
        """Return the token embedding of each text encoder by name."""
        return {name: embedder.token_embedding for name, embedder in zip(self.names, self.embedders, strict=True)}
