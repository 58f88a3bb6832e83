"""Text encoders: OpenAI's CLIP (Radford et al., 2021) and OpenCLIP (Cherti et al., 2022), with their published names.

Both are pre-norm causal transformers; all sizes come from the config. Attributes follow Hugging Face's
`CLIPTextModel` and `open_clip`, whose parameter names the published checkpoints have.

SDXL conditions on the hidden states before the last layer, without the final norm. Stable Diffusion 1 conditions on the
last layer's after the final norm. So does 2, with the layer before the last of OpenCLIP ViT-H, whose last layer and
text projection are not part of the network here (`FrozenOpenCLIPEmbedder` of Stability-AI/stablediffusion).
"""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from gm import ops as gm_ops
from gm.config.image_encoder import ImageEncoderConfig
from gm.config.networks import TextEncoderConfig
from gm.models import heads
from gm.models.layers import FrozenEmbedding, LayerNorm, Projection, parameter
from gm.models.token_embedding import TokenEmbedding
from gm.ops import layout
from gm.runtime.backend import DType


class _CLIPTextEmbeddings(nn.Cell):
    """Token plus position embeddings."""

    def __init__(self, config: TextEncoderConfig, dtype: DType) -> None:
        super().__init__()
        self.token_embedding = TokenEmbedding(config.vocab_size, config.width, dtype)
        self.position_embedding = FrozenEmbedding(config.context_length, config.width, dtype)

    def construct(self, token_ids: Tensor, embedding_vectors: Tensor) -> Tensor:
        return self.token_embedding(token_ids, embedding_vectors) + self.position_embedding.embedding_table


class _CLIPAttention(nn.Cell):
    """Self-attention, of texts causal, with separate query, key and value projections."""

    def __init__(self, width: int, num_heads: int, dtype: DType, causal: bool) -> None:
        super().__init__()
        split = heads.split(width, num_heads, dtype)
        self.q_proj = heads.to_heads(width, split, dtype)
        self.k_proj = heads.to_heads(width, split, dtype)
        self.v_proj = heads.to_heads(width, split, dtype)
        self.out_proj = heads.from_heads(split, width, dtype)
        self.attend = heads.attention(split, dtype, causal)

    def construct(self, x: Tensor) -> Tensor:
        return self.out_proj(self.attend(self.q_proj(x), self.k_proj(x), self.v_proj(x)))


class _CLIPMLP(nn.Cell):
    """Feed-forward network with quick GELU, the sigmoid approximation that OpenAI's models were trained with."""

    def __init__(self, width: int, dtype: DType) -> None:
        super().__init__()
        self.fc1 = Projection(width, 4 * width, dtype)
        self.fc2 = Projection(4 * width, width, dtype)

    def construct(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * ops.sigmoid(1.702 * x))


class _CLIPEncoderLayer(nn.Cell):
    def __init__(self, config: TextEncoderConfig | ImageEncoderConfig, dtype: DType, causal: bool) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.width)
        self.self_attn = _CLIPAttention(config.width, config.heads, dtype, causal)
        self.layer_norm2 = LayerNorm(config.width)
        self.mlp = _CLIPMLP(config.width, dtype)

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nn.Cell):
    """Layers of a text encoder or, without the causal mask, of an image encoder; their owner calls them."""

    def __init__(self, config: TextEncoderConfig | ImageEncoderConfig, dtype: DType, causal: bool = True) -> None:
        super().__init__()
        self.layers = nn.CellList([_CLIPEncoderLayer(config, dtype, causal) for _ in range(config.layers)])


class _CLIPTextModel(nn.Cell):
    def __init__(self, config: TextEncoderConfig, dtype: DType, final: bool) -> None:
        super().__init__()
        self.final = final
        self.num_run = config.layers_run if final else config.layers - 1
        self.embeddings = _CLIPTextEmbeddings(config, dtype)
        self.encoder = CLIPEncoder(config, dtype)
        self.final_layer_norm = LayerNorm(config.width)

    def construct(self, token_ids: Tensor, embedding_vectors: Tensor) -> Tensor:
        # SDXL's checkpoint has the last layer and the norm, but images need neither.
        x = self.run_layers(token_ids, embedding_vectors, self.num_run)
        if self.final:
            x = self.final_layer_norm(x)
        return layout.to_tokens(x)

    def run_layers(self, token_ids: Tensor, embedding_vectors: Tensor, count: int) -> Tensor:
        """Return the output of the first `count` layers, a sequence of `gm.ops.layout`."""
        x = layout.from_tokens(self.embeddings(token_ids, embedding_vectors))
        for index in range(count):
            x = self.encoder.layers[index](x)
        return x


class CLIPTextEncoder(nn.Cell):
    """Text encoder of OpenAI's CLIP (Radford et al., 2021); `clip_l` is that of ViT-L/14.

    token_ids [N, 77] int32 and embedding_vectors [n, width] float32 → hidden states [N, 77, width]: those before the
    last layer, or with `final` those of layer `layers_run`, by default the last, after the final norm.
    """

    def __init__(self, config: TextEncoderConfig, dtype: DType, final: bool = False) -> None:
        super().__init__()
        self.text_model = _CLIPTextModel(config, dtype, final)

    def construct(self, token_ids: Tensor, embedding_vectors: Tensor) -> Tensor:
        return self.text_model(token_ids, embedding_vectors)

    def output(self, token_ids: Tensor, embedding_vectors: Tensor) -> Tensor:
        """Return the last layer's hidden states after the final norm [N, 77, width], with or without `final`."""
        model = self.text_model
        hidden = model.run_layers(token_ids, embedding_vectors, len(model.encoder.layers))
        return layout.to_tokens(model.final_layer_norm(hidden))


class _OpenCLIPAttention(nn.Cell):
    """Causal self-attention with one projection [3 · width, width] for query, key and value (PyTorch's layout)."""

    def __init__(self, width: int, num_heads: int, dtype: DType) -> None:
        super().__init__()
        split = heads.split(width, num_heads, dtype)
        self.in_proj_weight = parameter((3 * split.channels, width), dtype, "in_proj_weight")
        self.in_proj_bias = parameter((3 * split.channels,), gm_ops.activation_dtype(dtype), "in_proj_bias")
        for projections in (self.in_proj_weight, self.in_proj_bias):
            heads.pad(projections, split, axis=0, projections=3)
        self.out_proj = heads.from_heads(split, width, dtype)
        self.project = gm_ops.projection()
        self.attend = heads.attention(split, dtype, causal=True)

    def construct(self, x: Tensor) -> Tensor:
        query, key, value = layout.split_channels(self.project(x, self.in_proj_weight, self.in_proj_bias), 3)
        return self.out_proj(self.attend(query, key, value))


class _OpenCLIPMLP(nn.Cell):
    """Feed-forward network with exact GELU."""

    def __init__(self, width: int, dtype: DType) -> None:
        super().__init__()
        self.c_fc = Projection(width, 4 * width, dtype)
        self.c_proj = Projection(4 * width, width, dtype)
        self.gelu = gm_ops.gelu()

    def construct(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class _ResidualAttentionBlock(nn.Cell):
    def __init__(self, config: TextEncoderConfig, dtype: DType) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.width)
        self.attn = _OpenCLIPAttention(config.width, config.heads, dtype)
        self.ln_2 = LayerNorm(config.width)
        self.mlp = _OpenCLIPMLP(config.width, dtype)

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


# By gradient checkpointing: they store many times their input for the backward pass.
CHECKPOINTED_CELLS = (_CLIPEncoderLayer, _ResidualAttentionBlock)


class _OpenCLIPTransformer(nn.Cell):
    def __init__(self, config: TextEncoderConfig, dtype: DType) -> None:
        super().__init__()
        self.resblocks = nn.CellList([_ResidualAttentionBlock(config, dtype) for _ in range(config.layers)])


class _OpenCLIPText(nn.Cell):
    """Parameters and first layers of OpenCLIP's text encoder (Cherti et al., 2022)."""

    def __init__(self, config: TextEncoderConfig, dtype: DType) -> None:
        super().__init__()
        self.token_embedding = TokenEmbedding(config.vocab_size, config.width, dtype)
        positions = (config.context_length, config.width)
        self.positional_embedding = parameter(positions, gm_ops.activation_dtype(dtype), "positional_embedding")
        self.transformer = _OpenCLIPTransformer(config, dtype)
        self.ln_final = LayerNorm(config.width)

    def run_layers(self, token_ids: Tensor, embedding_vectors: Tensor, count: int) -> Tensor:
        """Return the output of the first `count` layers, a sequence of `gm.ops.layout`."""
        hidden = layout.from_tokens(self.token_embedding(token_ids, embedding_vectors) + self.positional_embedding)
        for index in range(count):
            hidden = self.transformer.resblocks[index](hidden)
        return hidden

    def output(self, token_ids: Tensor, embedding_vectors: Tensor) -> Tensor:
        """Return the last layer's hidden states after the final norm [N, 77, width]."""
        hidden = self.run_layers(token_ids, embedding_vectors, len(self.transformer.resblocks))
        return layout.to_tokens(self.ln_final(hidden))


class OpenCLIPFinalTextEncoder(_OpenCLIPText):
    """OpenCLIP's text encoder without a pooled output; `clip_h` of Stable Diffusion 2 is that of ViT-H/14.

    token_ids [N, 77] int32 and embedding_vectors [n, width] float32 → the hidden states of layer `layers_run`, by
    default the last, after the final norm [N, 77, width].
    """

    def __init__(self, config: TextEncoderConfig, dtype: DType) -> None:
        super().__init__(config, dtype)
        self.num_run = config.layers_run

    def construct(self, token_ids: Tensor, embedding_vectors: Tensor) -> Tensor:
        return layout.to_tokens(self.ln_final(self.run_layers(token_ids, embedding_vectors, self.num_run)))


class OpenCLIPTextEncoder(_OpenCLIPText):
    """OpenCLIP's text encoder with a pooled output; SDXL's `clip_g` is that of ViT-bigG/14.

    token_ids [N, 77] int32, embedding_vectors [n, width] float32 and pool_position [N] int32 → hidden states before the
    last layer [N, 77, width] and pooled output [N, width]: the last layer's output at `pool_position`, after the final
    norm and the text projection.
    """

    def __init__(self, config: TextEncoderConfig, dtype: DType) -> None:
        super().__init__(config, dtype)
        self.penultimate = config.layers - 1
        self.matmul = ops.MatMul()  # not ops.matmul, whose gradient transposes the weight on Ascend
        dtype = gm_ops.activation_dtype(dtype)
        self.text_projection = parameter((config.width, config.width), dtype, "text_projection")
        self.logit_scale = parameter((), dtype, "logit_scale")  # in the checkpoint, but unused here

    def construct(self, token_ids: Tensor, embedding_vectors: Tensor, pool_position: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.run_layers(token_ids, embedding_vectors, self.penultimate)
        x = layout.to_tokens(self.transformer.resblocks[self.penultimate](hidden))
        n, length, width = x.shape
        flat_position = ops.arange(n).astype(pool_position.dtype) * length + pool_position
        pooled = ops.gather(x.reshape((n * length, width)), flat_position, 0).expand_dims(1)
        pooled = layout.to_tokens(self.ln_final(layout.from_tokens(pooled))).reshape((n, width))
        return layout.to_tokens(hidden), self.matmul(pooled, ops.cast(self.text_projection, pooled.dtype))
