"""The two text encoders of SDXL, pre-norm causal transformers (Radford et al., 2021), with their published names."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, nn, ops

from gm import ops as gm_ops
from gm.config.model import TextEncoderConfig
from gm.models.layers import FrozenEmbedding, LayerNorm, Projection, parameter
from gm.models.token_embedding import TokenEmbedding
from gm.ops import layout


class _Embeddings(nn.Cell):
    def __init__(self, config: TextEncoderConfig, dtype: Any) -> None:
        super().__init__()
        self.token_embedding = TokenEmbedding(config.vocab_size, config.width, dtype)
        self.position_embedding = FrozenEmbedding(config.context_length, config.width, dtype)

    def construct(self, ids: Tensor, rows: Tensor) -> Tensor:
        return self.token_embedding(ids, rows) + self.position_embedding.embedding_table


class _SelfAttention(nn.Cell):
    def __init__(self, width: int, heads: int, dtype: Any) -> None:
        super().__init__()
        self.q_proj = Projection(width, width, dtype)
        self.k_proj = Projection(width, width, dtype)
        self.v_proj = Projection(width, width, dtype)
        self.out_proj = Projection(width, width, dtype)
        self.attend = gm_ops.attention(heads, causal=True)

    def construct(self, x: Tensor) -> Tensor:
        return self.out_proj(self.attend(self.q_proj(x), self.k_proj(x), self.v_proj(x)))


class _QuickGELUMlp(nn.Cell):
    """CLIP-L's feed-forward with the sigmoid approximation of GELU it was trained with."""

    def __init__(self, width: int, dtype: Any) -> None:
        super().__init__()
        self.fc1 = Projection(width, 4 * width, dtype)
        self.fc2 = Projection(4 * width, width, dtype)

    def construct(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * ops.sigmoid(1.702 * x))


class _ClipLayer(nn.Cell):
    def __init__(self, config: TextEncoderConfig, dtype: Any) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.width)
        self.self_attn = _SelfAttention(config.width, config.heads, dtype)
        self.layer_norm2 = LayerNorm(config.width)
        self.mlp = _QuickGELUMlp(config.width, dtype)

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _ClipEncoder(nn.Cell):
    def __init__(self, config: TextEncoderConfig, dtype: Any) -> None:
        super().__init__()
        self.layers = nn.CellList([_ClipLayer(config, dtype) for _ in range(config.layers)])


class _ClipTextModel(nn.Cell):
    def __init__(self, config: TextEncoderConfig, dtype: Any) -> None:
        super().__init__()
        self.last = config.layers - 1
        self.embeddings = _Embeddings(config, dtype)
        self.encoder = _ClipEncoder(config, dtype)
        self.final_layer_norm = LayerNorm(config.width)

    def construct(self, ids: Tensor, rows: Tensor) -> Tensor:
        x = layout.from_tokens(self.embeddings(ids, rows))
        # SDXL reads the layer before the last, without the final norm: what follows is published but never computed.
        for index in range(self.last):
            x = self.encoder.layers[index](x)
        return layout.to_tokens(x)


class CLIPTextEncoder(nn.Cell):
    """Text encoder 1, OpenAI CLIP ViT-L/14: ids [N, 77] and rows [n, width] → hidden state [N, 77, width]."""

    def __init__(self, config: TextEncoderConfig, dtype: Any) -> None:
        super().__init__()
        self.text_model = _ClipTextModel(config, dtype)

    def construct(self, ids: Tensor, rows: Tensor) -> Tensor:
        return self.text_model(ids, rows)


class _FusedAttention(nn.Cell):
    """Query, key and value in one matrix [3·width, width], as OpenCLIP stores them."""

    def __init__(self, width: int, heads: int, dtype: Any) -> None:
        super().__init__()
        self.in_proj_weight = parameter((3 * width, width), dtype, "in_proj_weight")
        self.in_proj_bias = parameter((3 * width,), dtype, "in_proj_bias")
        self.out_proj = Projection(width, width, dtype)
        self.project = gm_ops.projection()
        self.attend = gm_ops.attention(heads, causal=True)

    def construct(self, x: Tensor) -> Tensor:
        query, key, value = layout.split_channels(self.project(x, self.in_proj_weight, self.in_proj_bias), 3)
        return self.out_proj(self.attend(query, key, value))


class _Mlp(nn.Cell):
    def __init__(self, width: int, dtype: Any) -> None:
        super().__init__()
        self.c_fc = Projection(width, 4 * width, dtype)
        self.c_proj = Projection(4 * width, width, dtype)
        self.gelu = gm_ops.gelu()

    def construct(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class _OpenClipBlock(nn.Cell):
    def __init__(self, config: TextEncoderConfig, dtype: Any) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.width)
        self.attn = _FusedAttention(config.width, config.heads, dtype)
        self.ln_2 = LayerNorm(config.width)
        self.mlp = _Mlp(config.width, dtype)

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


RECOMPUTED = (_ClipLayer, _OpenClipBlock)  # keep many times their input for the backward pass


class _OpenClipTransformer(nn.Cell):
    def __init__(self, config: TextEncoderConfig, dtype: Any) -> None:
        super().__init__()
        self.resblocks = nn.CellList([_OpenClipBlock(config, dtype) for _ in range(config.layers)])


class OpenCLIPTextEncoder(nn.Cell):
    """Text encoder 2, OpenCLIP ViT-bigG/14.

    ids [N, 77], rows [n, width] and pool_position [N] int32 → hidden state [N, 77, width] of the layer before the last
    and pooled [N, width]: the last layer's normed output at `pool_position`, projected.
    """

    def __init__(self, config: TextEncoderConfig, dtype: Any) -> None:
        super().__init__()
        self.last = config.layers - 1
        self.token_embedding = TokenEmbedding(config.vocab_size, config.width, dtype)
        self.positional_embedding = parameter((config.context_length, config.width), dtype, "positional_embedding")
        self.transformer = _OpenClipTransformer(config, dtype)
        self.ln_final = LayerNorm(config.width)
        self.text_projection = parameter((config.width, config.width), dtype, "text_projection")
        self.logit_scale = parameter((), dtype, "logit_scale")  # published, and of no use here

    def construct(self, ids: Tensor, rows: Tensor, pool_position: Tensor) -> tuple[Tensor, Tensor]:
        hidden = layout.from_tokens(self.token_embedding(ids, rows) + self.positional_embedding)
        for index in range(self.last):
            hidden = self.transformer.resblocks[index](hidden)
        x = layout.to_tokens(self.transformer.resblocks[self.last](hidden))
        n, length, width = x.shape
        flat = ops.arange(n).astype(pool_position.dtype) * length + pool_position
        pooled = ops.gather(x.reshape((n * length, width)), flat, 0).expand_dims(1)
        pooled = layout.to_tokens(self.ln_final(layout.from_tokens(pooled))).reshape((n, width))
        return layout.to_tokens(hidden), ops.matmul(pooled, ops.cast(self.text_projection, pooled.dtype))
