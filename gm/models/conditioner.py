"""Token ids and sizes → the UNet's conditioning: context (hidden states of the text encoders) and class embedding y."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.config.model import ModelConfig
from gm.models.layers import SinusoidalEmbedding
from gm.models.text_encoders import CLIPTextEncoder, OpenCLIPTextEncoder


class _Encoder1(nn.Cell):
    def __init__(self, config: ModelConfig, dtype: Any) -> None:
        super().__init__()
        self.transformer = CLIPTextEncoder(config.text_encoder_1, dtype)


class _Encoder2(nn.Cell):
    def __init__(self, config: ModelConfig, dtype: Any) -> None:
        super().__init__()
        self.model = OpenCLIPTextEncoder(config.text_encoder_2, dtype)


class _Vector(nn.Cell):
    """pooled [N, width] and sizes [N, n] float32 → class vector [N, V] float32: pooled, then a sinusoid a size."""

    def __init__(self, size_embedding_dim: int) -> None:
        super().__init__()
        self.sinusoids = SinusoidalEmbedding(size_embedding_dim)

    def construct(self, pooled: Tensor, sizes: Tensor) -> Tensor:
        told = self.sinusoids(sizes.reshape((-1,))).reshape((sizes.shape[0], -1))
        return ops.concat((ops.cast(pooled, ms.float32), told), axis=-1)


class Conditioner(nn.Cell):
    """The text encoders of a model, under their published names.

    A base model has `embedders.0.transformer` (CLIP-L) and `embedders.1.model` (OpenCLIP bigG), a refiner has bigG
    alone, as `embedders.0.model`. ids: int32 [N, 77] of each encoder (they differ in padding only); vectors: float32
    [n, dim] of each encoder, for the ids beyond the vocabulary; pool_position [N] int32; sizes [N, 6] float32
    (original height and width, crop top and left, target height and width, in pixels), for a refiner [N, 5] (the first
    four and an aesthetic score) → context [N, 77, sum of the dims] and y [N, adm_in_channels].
    """

    def __init__(self, config: ModelConfig, dtype: Any) -> None:
        super().__init__()
        self.vector = _Vector(config.size_embedding_dim)
        self.has_clip_l = "clip_l" in config.text_encoders
        embedders = [_Encoder1(config, dtype)] if self.has_clip_l else []
        self.embedders = nn.CellList([*embedders, _Encoder2(config, dtype)])

    def construct(
        self, ids: tuple[Tensor, ...], vectors: tuple[Tensor, ...], pool_position: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        context, pooled = self.embedders[-1].model(ids[-1], vectors[-1], pool_position)
        if self.has_clip_l:
            context = ops.concat((self.embedders[0].transformer(ids[0], vectors[0]), context), axis=-1)
        return context, self.vector(pooled, sizes)
