"""DINO's and DINOv2's image encoders under the names of transformers' published `ViTModel` and `Dinov2Model` files.

DINO: Caron et al., 2021 (https://arxiv.org/abs/2104.14294); DINOv2: Oquab et al., 2023
(https://arxiv.org/abs/2304.07193). Both are pre-norm transformers whose class token after the final norm is the
feature of the image. DINOv2 scales each residual branch.
"""

from __future__ import annotations

from mindspore import Tensor, nn

from gm import ops as gm_ops
from gm.config.image_encoder import ImageEncoderConfig
from gm.models.layers import LayerNorm, Projection, parameter
from gm.models.patches import PatchEmbedding, prepend_class_token
from gm.ops import layout
from gm.runtime.backend import DType


class _PatchEmbeddings(nn.Cell):
    def __init__(self, config: ImageEncoderConfig, dtype: DType) -> None:
        super().__init__()
        self.projection = PatchEmbedding(config, dtype, bias=True)

    def construct(self, pixels: Tensor) -> Tensor:
        return self.projection(pixels)


class _Embeddings(nn.Cell):
    def __init__(self, config: ImageEncoderConfig, dtype: DType) -> None:
        super().__init__()
        self.cls_token = parameter((1, 1, config.width), dtype, "cls_token")
        self.patch_embeddings = _PatchEmbeddings(config, dtype)
        self.position_embeddings = parameter((1, config.num_positions, config.width), dtype, "position_embeddings")

    def construct(self, pixels: Tensor) -> Tensor:
        return prepend_class_token(self.patch_embeddings(pixels), self.cls_token) + self.position_embeddings


class _SelfAttention(nn.Cell):
    def __init__(self, config: ImageEncoderConfig, dtype: DType) -> None:
        super().__init__()
        self.query = Projection(config.width, config.width, dtype)
        self.key = Projection(config.width, config.width, dtype)
        self.value = Projection(config.width, config.width, dtype)
        self.attend = gm_ops.attention(config.heads)

    def construct(self, x: Tensor) -> Tensor:
        return self.attend(self.query(x), self.key(x), self.value(x))


class _Dense(nn.Cell):
    """Gives a projection its published prefix, `dense`."""

    def __init__(self, inputs: int, outputs: int, dtype: DType) -> None:
        super().__init__()
        self.dense = Projection(inputs, outputs, dtype)

    def construct(self, x: Tensor) -> Tensor:
        return self.dense(x)


class _Attention(nn.Cell):
    def __init__(self, config: ImageEncoderConfig, dtype: DType) -> None:
        super().__init__()
        self.attention = _SelfAttention(config, dtype)
        self.output = _Dense(config.width, config.width, dtype)

    def construct(self, x: Tensor) -> Tensor:
        return self.output(self.attention(x))


class _DINOLayer(nn.Cell):
    def __init__(self, config: ImageEncoderConfig, dtype: DType) -> None:
        super().__init__()
        self.layernorm_before = LayerNorm(config.width, config.epsilon)
        self.attention = _Attention(config, dtype)
        self.layernorm_after = LayerNorm(config.width, config.epsilon)
        self.intermediate = _Dense(config.width, 4 * config.width, dtype)
        self.output = _Dense(4 * config.width, config.width, dtype)
        self.gelu = gm_ops.gelu()

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.layernorm_before(x))
        return x + self.output(self.gelu(self.intermediate(self.layernorm_after(x))))


class _MLP(nn.Cell):
    def __init__(self, config: ImageEncoderConfig, dtype: DType) -> None:
        super().__init__()
        self.fc1 = Projection(config.width, 4 * config.width, dtype)
        self.fc2 = Projection(4 * config.width, config.width, dtype)
        self.gelu = gm_ops.gelu()

    def construct(self, x: Tensor) -> Tensor:
        return self.fc2(self.gelu(self.fc1(x)))


class _LayerScale(nn.Cell):
    """Multiplies every channel by a trained number (Touvron et al., 2021, https://arxiv.org/abs/2103.17239)."""

    def __init__(self, width: int, dtype: DType) -> None:
        super().__init__()
        self.lambda1 = parameter((width,), dtype, "lambda1")

    def construct(self, x: Tensor) -> Tensor:
        return layout.scale_channels(x, self.lambda1)


class _DINOv2Layer(nn.Cell):
    def __init__(self, config: ImageEncoderConfig, dtype: DType) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.width, config.epsilon)
        self.attention = _Attention(config, dtype)
        self.layer_scale1 = _LayerScale(config.width, dtype)
        self.norm2 = LayerNorm(config.width, config.epsilon)
        self.mlp = _MLP(config, dtype)
        self.layer_scale2 = _LayerScale(config.width, dtype)

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class _Encoder(nn.Cell):
    def __init__(self, config: ImageEncoderConfig, dtype: DType) -> None:
        super().__init__()
        kind = _DINOv2Layer if config.layer_scale else _DINOLayer
        self.layer = nn.CellList([kind(config, dtype) for _ in range(config.layers)])


class DINOImageEncoder(nn.Cell):
    """Image encoder of DINO, with `layer_scale` of DINOv2: pixels [N, 3, H, W] float32, normalised → [N, width].

    The result is the class token's output after the final norm.
    """

    def __init__(self, config: ImageEncoderConfig, dtype: DType) -> None:
        super().__init__()
        self.num_layers = config.layers
        self.embeddings = _Embeddings(config, dtype)
        self.encoder = _Encoder(config, dtype)
        self.layernorm = LayerNorm(config.width, config.epsilon)

    def construct(self, pixels: Tensor) -> Tensor:
        x = layout.from_tokens(self.embeddings(pixels))
        for index in range(self.num_layers):
            x = self.encoder.layer[index](x)
        class_token = layout.from_tokens(layout.to_tokens(x)[:, :1])
        return layout.to_tokens(self.layernorm(class_token))[:, 0]
