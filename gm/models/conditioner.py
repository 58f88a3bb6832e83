"""Text and sizes → what steers the UNet: the context (the encoders' hidden states) and the class vector."""

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
    """Both encoders, under their published names `embedders.0.transformer` and `embedders.1.model`.

    ids_1, ids_2 [N, 77] int32 (they differ in padding only), pool_position [N] int32, rows_1 [n, width 1] and
    rows_2 [n, width 2] float32 for the ids beyond the vocabulary, sizes [N, 6] float32 (original height and width,
    crop top and left, target height and width, in pixels) → context [N, 77, width 1 + width 2] and vector [N, V].
    """

    def __init__(self, config: ModelConfig, dtype: Any) -> None:
        super().__init__()
        self.vector = _Vector(config.size_embedding_dim)
        self.embedders = nn.CellList([_Encoder1(config, dtype), _Encoder2(config, dtype)])

    def construct(
        self, ids_1: Tensor, ids_2: Tensor, pool_position: Tensor, clip_l: Tensor, clip_g: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden_1 = self.embedders[0].transformer(ids_1, clip_l)
        hidden_2, pooled = self.embedders[1].model(ids_2, clip_g, pool_position)
        context = ops.concat((hidden_1, hidden_2), axis=-1)
        return context, self.vector(pooled, sizes)


class RefinerConditioner(nn.Cell):
    """A refiner's only encoder, text encoder 2, under its published name `embedders.0.model`.

    ids_2 [N, 77] int32, pool_position [N] int32, rows_2 [n, width 2] float32 for the ids beyond the vocabulary, sizes
    [N, 5] float32 (original height and width, crop top and left in pixels, aesthetic score) → context [N, 77, width 2]
    and vector [N, V].
    """

    def __init__(self, config: ModelConfig, dtype: Any) -> None:
        super().__init__()
        self.vector = _Vector(config.size_embedding_dim)
        self.embedders = nn.CellList([_Encoder2(config, dtype)])

    def construct(self, ids_2: Tensor, pool_position: Tensor, clip_g: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        context, pooled = self.embedders[0].model(ids_2, clip_g, pool_position)
        return context, self.vector(pooled, sizes)
