"""Spatial transformer of the UNet (Rombach et al., 2022): self- and cross-attention over the pixels of a feature map.

Class and attribute names follow Stability AI's `generative-models` (sgm), whose attributes name the checkpoint's
tensors. The keys and values of cross-attention are arguments: they depend on the text alone and are the same for every
sampling step.
"""

from __future__ import annotations

from mindspore import Tensor, nn

from gm import ops as gm_ops
from gm.config.networks import UNetConfig
from gm.models import heads
from gm.models.layers import GroupNorm, LayerNorm, Projection, ProjectionFromImage, ProjectionToImage
from gm.runtime.backend import DType


class _CrossAttention(nn.Cell):
    """Multi-head attention (Vaswani et al., 2017) of a sequence to a context of width `context_dim`."""

    def __init__(self, width: int, context_dim: int, num_heads: int, upcast: bool, dtype: DType) -> None:
        super().__init__()
        split = heads.split(width, num_heads, dtype)
        self.to_q = heads.to_heads(width, split, dtype, bias=False)
        self.to_k = heads.to_heads(context_dim, split, dtype, bias=False)
        self.to_v = heads.to_heads(context_dim, split, dtype, bias=False)
        self.to_out = nn.SequentialCell(heads.from_heads(split, width, dtype))
        self.attend = heads.attention(split, dtype, upcast=upcast)

    def project_context(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the context."""
        return self.to_k(context), self.to_v(context)

    def construct(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.to_out(self.attend(self.to_q(x), key, value))


class _GEGLU(nn.Cell):
    """Linear unit gated by GELU (Shazeer, 2020): width → 4 · width."""

    def __init__(self, width: int, dtype: DType) -> None:
        super().__init__()
        self.proj = Projection(width, 8 * width, dtype)
        self.geglu = gm_ops.geglu()

    def construct(self, x: Tensor) -> Tensor:
        return self.geglu(self.proj(x))


class _FeedForward(nn.Cell):
    def __init__(self, width: int, dtype: DType) -> None:
        super().__init__()
        # The identity stands for dropout, which gives the last projection its published index.
        self.net = nn.SequentialCell(_GEGLU(width, dtype), nn.Identity(), Projection(4 * width, width, dtype))

    def construct(self, x: Tensor) -> Tensor:
        return self.net(x)


class _BasicTransformerBlock(nn.Cell):
    """Pre-norm self-attention, cross-attention and feed-forward, each added to its input."""

    def __init__(self, width: int, context_dim: int, num_heads: int, upcast: bool, dtype: DType) -> None:
        super().__init__()
        self.attn1 = _CrossAttention(width, width, num_heads, upcast, dtype)
        self.ff = _FeedForward(width, dtype)
        self.attn2 = _CrossAttention(width, context_dim, num_heads, upcast, dtype)
        self.norm1 = LayerNorm(width)
        self.norm2 = LayerNorm(width)
        self.norm3 = LayerNorm(width)

    def construct(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, *self.attn1.project_context(h))
        x = x + self.attn2(self.norm2(x), key, value)
        return x + self.ff(self.norm3(x))


CHECKPOINTED_CELLS = (_BasicTransformerBlock,)  # by gradient checkpointing: they store many times their input


class SpatialTransformer(nn.Cell):
    """`depth` transformer blocks over the pixels of x [N, C, H, W], between projections, added to x.

    The projections are linear, in Stable Diffusion 1 1×1 convolutions: the same numbers in other shapes.
    """

    def __init__(self, channels: int, depth: int, config: UNetConfig, dtype: DType) -> None:
        super().__init__()
        num_heads = config.heads(channels)
        linear = config.use_linear_in_transformer
        self.norm = GroupNorm(config.norm_num_groups, channels, 1e-6, dtype)
        self.proj_in = ProjectionFromImage(channels, channels, dtype, linear)
        self.transformer_blocks = nn.CellList(
            [
                _BasicTransformerBlock(channels, config.context_dim, num_heads, config.upcast_attention, dtype)
                for _ in range(depth)
            ]
        )
        self.proj_out = ProjectionToImage(channels, channels, dtype, linear)

    def project_context(self, context: Tensor) -> tuple[Tensor, ...]:
        """Return key and value of the context (a sequence of `gm.ops.layout`) for each block in turn."""
        context_kv: tuple[Tensor, ...] = ()
        for block in self.transformer_blocks:
            context_kv = context_kv + block.attn2.project_context(context)
        return context_kv

    def construct(self, x: Tensor, context_kv: tuple[Tensor, ...]) -> Tensor:
        h = self.proj_in(self.norm(x))
        index = 0
        for block in self.transformer_blocks:
            h = block(h, context_kv[index], context_kv[index + 1])
            index += 2
        return x + self.proj_out(h, *x.shape[2:])
