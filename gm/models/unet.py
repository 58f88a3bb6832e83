"""The denoising UNet of SDXL (Podell et al., 2023), with the published checkpoint's names.

Every layer of a block takes (x, time, heard, size) and uses what it needs, so that a block is a plain list of layers.
`context_kv` are the keys and values of the text for all cross-attentions in turn, sequences of `gm.ops.layout`:
what a layer contributes to them, its `project_context` returns. `size` is the height and width that the next
output block expects.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm import ops as gm_ops
from gm.config.model import UNetConfig
from gm.models.layers import (
    Conv2d,
    GroupNorm,
    LayerNorm,
    Linear,
    PointwiseConv2d,
    Projection,
    SinusoidalEmbedding,
    Upsample,
)
from gm.ops import layout


class _Deaf(nn.Cell):
    """A layer that attends to no text."""

    def project_context(self, context: Tensor) -> tuple[Tensor, ...]:
        return ()


class _InputConv(_Deaf, Conv2d):
    # A subclass, not a wrapper, which would change the published name.
    def construct(self, x: Tensor, time: Tensor, context_kv: tuple, size: tuple) -> Tensor:  # type: ignore[override]
        return self.convolve(x)


class _Down(_Deaf):
    def __init__(self, channels: int, dtype: Any) -> None:
        super().__init__()
        self.op = Conv2d(channels, channels, 3, dtype, stride=2)

    def construct(self, x: Tensor, time: Tensor, context_kv: tuple, size: tuple) -> Tensor:
        return self.op(x)


class _Up(_Deaf, Upsample):
    def construct(self, x: Tensor, time: Tensor, context_kv: tuple, size: tuple) -> Tensor:  # type: ignore[override]
        return self.double(x, size)


class _ResBlock(_Deaf):
    """Two convolutions around an injection of the time vector, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, time_width: int, groups: int, dtype: Any) -> None:
        super().__init__()
        self.in_layers = nn.SequentialCell(
            GroupNorm(groups, inputs, 1e-5), nn.SiLU(), Conv2d(inputs, outputs, 3, dtype)
        )
        self.emb_layers = nn.SequentialCell(nn.SiLU(), Linear(time_width, outputs, dtype))
        self.out_layers = nn.SequentialCell(
            GroupNorm(groups, outputs, 1e-5), nn.SiLU(), nn.Identity(), Conv2d(outputs, outputs, 3, dtype)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else PointwiseConv2d(inputs, outputs, dtype)

    def construct(self, x: Tensor, time: Tensor, context_kv: tuple, size: tuple) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(time).expand_dims(-1).expand_dims(-1)
        return self.skip_connection(x) + self.out_layers(h)


class _Attention(nn.Cell):
    def __init__(self, width: int, context_dim: int, heads: int, dtype: Any) -> None:
        super().__init__()
        self.to_q = Projection(width, width, dtype, bias=False)
        self.to_k = Projection(context_dim, width, dtype, bias=False)
        self.to_v = Projection(context_dim, width, dtype, bias=False)
        self.to_out = nn.SequentialCell(Projection(width, width, dtype))
        self.attend = gm_ops.attention(heads)

    def project_context(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of what is attended to."""
        return self.to_k(context), self.to_v(context)

    def construct(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.to_out(self.attend(self.to_q(x), key, value))


class _Gate(nn.Cell):
    """GEGLU (Shazeer, 2020): half of the projection, gated by the exact GELU of the other half."""

    def __init__(self, width: int, dtype: Any) -> None:
        super().__init__()
        self.proj = Projection(width, 8 * width, dtype)
        self.gelu = gm_ops.gelu()

    def construct(self, x: Tensor) -> Tensor:
        value, gate = layout.split_channels(self.proj(x), 2)
        return value * self.gelu(gate)


class _FeedForward(nn.Cell):
    def __init__(self, width: int, dtype: Any) -> None:
        super().__init__()
        self.net = nn.SequentialCell(_Gate(width, dtype), nn.Identity(), Projection(4 * width, width, dtype))

    def construct(self, x: Tensor) -> Tensor:
        return self.net(x)


class _TransformerBlock(nn.Cell):
    def __init__(self, width: int, context_dim: int, heads: int, dtype: Any) -> None:
        super().__init__()
        self.attn1 = _Attention(width, width, heads, dtype)
        self.ff = _FeedForward(width, dtype)
        self.attn2 = _Attention(width, context_dim, heads, dtype)
        self.norm1 = LayerNorm(width)
        self.norm2 = LayerNorm(width)
        self.norm3 = LayerNorm(width)

    def construct(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn1(y, *self.attn1.project_context(y))
        x = x + self.attn2(self.norm2(x), key, value)
        return x + self.ff(self.norm3(x))


RECOMPUTED = (_TransformerBlock,)  # keeps many times its input for the backward pass


class _SpatialTransformer(nn.Cell):
    """Transformer blocks over the pixels of x [N, C, H, W]; linear projections in and out."""

    def __init__(self, channels: int, depth: int, config: UNetConfig, dtype: Any) -> None:
        super().__init__()
        heads = channels // config.num_head_channels
        self.norm = GroupNorm(config.norm_num_groups, channels, 1e-6)
        self.proj_in = Projection(channels, channels, dtype)
        self.transformer_blocks = nn.CellList(
            [_TransformerBlock(channels, config.context_dim, heads, dtype) for _ in range(depth)]
        )
        self.proj_out = Projection(channels, channels, dtype)
        self.first = 0  # place of the first block's key among all that is heard; the UNet knows

    def project_context(self, context: Tensor) -> tuple[Tensor, ...]:
        context_kv: tuple[Tensor, ...] = ()
        for block in self.transformer_blocks:
            context_kv = context_kv + block.attn2.project_context(context)
        return context_kv

    def construct(self, x: Tensor, time: Tensor, context_kv: tuple, size: tuple) -> Tensor:
        h = self.proj_in(layout.from_image(self.norm(x)))
        place = self.first
        for block in self.transformer_blocks:
            h = block(h, context_kv[place], context_kv[place + 1])
            place += 2
        return x + layout.to_image(self.proj_out(h), *x.shape[2:])


class UNet(nn.Cell):
    """x [N, in, H, W], timestep [N] float32, context [N, 77, C], vector [N, V] → ε [N, out, H, W] in float32.

    For many x of one context, call `project_context` once and give its result to `forward`.
    """

    def __init__(self, config: UNetConfig, dtype: Any) -> None:
        super().__init__()
        self.dtype = dtype
        self.sinusoids = SinusoidalEmbedding(config.model_channels)
        time_width = 4 * config.model_channels
        self.time_embed = _two_layers(config.model_channels, time_width, dtype)
        self.label_emb = nn.SequentialCell(_two_layers(config.adm_in_channels, time_width, dtype))
        blocks, skips = _input_blocks(config, time_width, dtype)
        self.input_blocks = nn.CellList(blocks)
        channels, depth = skips[-1], config.middle_depth
        self.middle_block = nn.CellList(
            [
                _ResBlock(channels, channels, time_width, config.norm_num_groups, dtype),
                _SpatialTransformer(channels, depth, config, dtype),
                _ResBlock(channels, channels, time_width, config.norm_num_groups, dtype),
            ]
        )
        self.output_blocks = nn.CellList(_output_blocks(config, skips, time_width, dtype))
        self.out = nn.SequentialCell(
            GroupNorm(config.norm_num_groups, config.model_channels, 1e-5),
            nn.SiLU(),
            Conv2d(config.model_channels, config.out_channels, 3, dtype),
        )
        context_kv = 0
        for _, layer in self.cells_and_names():
            if isinstance(layer, _SpatialTransformer):
                layer.first = context_kv
                context_kv += 2 * len(layer.transformer_blocks)

    def construct(self, x: Tensor, timestep: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        return self.forward(x, timestep, self.project_context(context), vector)

    def project_context(self, context: Tensor) -> tuple[Tensor, ...]:
        """Return the keys and values of `context` [N, 77, C] for every cross-attention in turn."""
        context = layout.from_tokens(ops.cast(context, self.dtype))
        context_kv: tuple[Tensor, ...] = ()
        for block in self.input_blocks:
            for layer in block:
                context_kv = context_kv + layer.project_context(context)
        for layer in self.middle_block:
            context_kv = context_kv + layer.project_context(context)
        for block in self.output_blocks:
            for layer in block:
                context_kv = context_kv + layer.project_context(context)
        return context_kv

    def forward(self, x: Tensor, timestep: Tensor, context_kv: tuple, vector: Tensor) -> Tensor:
        """Return ε [N, out, H, W] of x, given what was `context_kv` of the context."""
        time = self.time_embed(ops.cast(self.sinusoids(timestep), self.dtype))
        time = time + self.label_emb(ops.cast(vector, self.dtype))
        x = ops.cast(x, self.dtype)
        skips: tuple[Tensor, ...] = ()
        size = x.shape[2:]
        for block in self.input_blocks:
            for layer in block:
                x = layer(x, time, context_kv, size)
            skips = (*skips, x)
        for layer in self.middle_block:
            x = layer(x, time, context_kv, size)
        for block in self.output_blocks:
            x = ops.concat((x, skips[-1]), axis=1)
            skips = skips[:-1]
            if len(skips) > 0:
                size = skips[-1].shape[2:]
            for layer in block:
                x = layer(x, time, context_kv, size)
        return ops.cast(self.out(x), ms.float32)


def _two_layers(inputs: int, outputs: int, dtype: Any) -> nn.SequentialCell:
    return nn.SequentialCell(Linear(inputs, outputs, dtype), nn.SiLU(), Linear(outputs, outputs, dtype))


def _input_blocks(config: UNetConfig, time_width: int, dtype: Any) -> tuple[list[nn.CellList], list[int]]:
    """Return the blocks of the way down and the channels that each hands to the way up."""
    channels = config.model_channels
    blocks, skips = [nn.CellList([_InputConv(config.in_channels, channels, 3, dtype)])], [channels]
    for level, (mult, depth) in enumerate(zip(config.channel_mult, config.transformer_depth, strict=True)):
        for _ in range(config.num_res_blocks):
            outputs = mult * config.model_channels
            blocks.append(_block(channels, outputs, depth, config, time_width, dtype))
            channels = outputs
            skips.append(channels)
        if level < len(config.channel_mult) - 1:
            blocks.append(nn.CellList([_Down(channels, dtype)]))
            skips.append(channels)
    return blocks, skips


def _output_blocks(config: UNetConfig, skips: list[int], time_width: int, dtype: Any) -> list[nn.CellList]:
    remaining, channels, blocks = list(skips), skips[-1], []
    for level in reversed(range(len(config.channel_mult))):
        outputs = config.channel_mult[level] * config.model_channels
        for index in range(config.num_res_blocks + 1):
            inputs = channels + remaining.pop()
            block = _block(inputs, outputs, config.transformer_depth[level], config, time_width, dtype)
            if level > 0 and index == config.num_res_blocks:
                block.append(_Up(outputs, dtype))
            blocks.append(block)
            channels = outputs
    return blocks


def _block(inputs: int, outputs: int, depth: int, config: UNetConfig, time_width: int, dtype: Any) -> nn.CellList:
    layers: list[nn.Cell] = [_ResBlock(inputs, outputs, time_width, config.norm_num_groups, dtype)]
    if depth:
        layers.append(_SpatialTransformer(outputs, depth, config, dtype))
    return nn.CellList(layers)
