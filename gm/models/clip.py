"""CLIP's two encoders (Radford et al., 2021) with their projections, under the names of transformers' `CLIPModel`."""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from gm.config.image_encoder import CLIPConfig, ImageEncoderConfig
from gm.config.networks import TextEncoderConfig
from gm.models.layers import FrozenEmbedding, LayerNorm, Linear, parameter
from gm.models.patches import PatchEmbedding, prepend_class_token
from gm.models.text_encoders import CLIPEncoder, CLIPTextEncoder
from gm.ops import layout
from gm.runtime.backend import DType


class _CLIPVisionEmbeddings(nn.Cell):
    def __init__(self, config: ImageEncoderConfig, dtype: DType) -> None:
        super().__init__()
        self.class_embedding = parameter((config.width,), dtype, "class_embedding")
        self.patch_embedding = PatchEmbedding(config, dtype, bias=False)
        self.position_embedding = FrozenEmbedding(config.num_positions, config.width, dtype)

    def construct(self, pixels: Tensor) -> Tensor:
        tokens = prepend_class_token(self.patch_embedding(pixels), self.class_embedding)
        return tokens + self.position_embedding.embedding_table


class _CLIPVisionModel(nn.Cell):
    def __init__(self, config: ImageEncoderConfig, dtype: DType) -> None:
        super().__init__()
        self.num_layers = config.layers
        self.embeddings = _CLIPVisionEmbeddings(config, dtype)
        self.pre_layrnorm = LayerNorm(config.width)  # so spelled in the published files
        self.encoder = CLIPEncoder(config, dtype, causal=False)
        self.post_layernorm = LayerNorm(config.width)

    def construct(self, pixels: Tensor) -> Tensor:
        x = self.pre_layrnorm(layout.from_tokens(self.embeddings(pixels)))
        for index in range(self.num_layers):
            x = self.encoder.layers[index](x)
        class_token = layout.from_tokens(layout.to_tokens(x)[:, :1])
        return layout.to_tokens(self.post_layernorm(class_token))[:, 0]


class CLIPImageEncoder(nn.Cell):
    """Image encoder: pixels [N, 3, H, W] float32, normalised → image embedding [N, projection]."""

    def __init__(self, config: CLIPConfig, dtype: DType) -> None:
        super().__init__()
        self.vision_model = _CLIPVisionModel(config.image, dtype)
        self.visual_projection = Linear(config.image.width, config.projection, dtype, bias=False)

    def construct(self, pixels: Tensor) -> Tensor:
        return self.visual_projection(self.vision_model(pixels))


class CLIPTextProjection(nn.Cell):
    """Text encoder: token_ids [N, 77] int32 and pool_position [N] int32 → text embedding [N, projection].

    It is that of the position of the end-of-text token.
    """

    def __init__(self, config: CLIPConfig, dtype: DType) -> None:
        super().__init__()
        text: TextEncoderConfig = config.text
        self.text_model = CLIPTextEncoder(text, dtype, final=True).text_model
        self.text_projection = Linear(text.width, config.projection, dtype, bias=False)
        self.no_vectors = ops.zeros((1, text.width), dtype)  # of placeholder tokens, which these texts do not have

    def construct(self, token_ids: Tensor, pool_position: Tensor) -> Tensor:
        hidden = self.text_model(token_ids, self.no_vectors)
        n, length, width = hidden.shape
        flat_position = ops.arange(n).astype(pool_position.dtype) * length + pool_position
        return self.text_projection(ops.gather(hidden.reshape((n * length, width)), flat_position, 0))
