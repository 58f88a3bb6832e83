"""The denoising UNet of Stable Diffusion (Rombach et al., 2022) and SDXL (Podell et al., 2023), with published names.

Class and attribute names follow Stability AI's `generative-models` (sgm).
"""

# ruff: noqa: B905 -- `zip` has no argument `strict` in code that MindSpore compiles

from __future__ import annotations

from collections.abc import Iterable

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm import ops as gm_ops
from gm.config.networks import UNetConfig
from gm.models.layers import Conv2d, GroupNorm, Linear, PointwiseConv2d, SinusoidalEmbedding, Upsample
from gm.models.spatial_transformer import SpatialTransformer
from gm.ops import layout
from gm.runtime.backend import DType


class _ResBlock(nn.Cell):
    """Two convolutions with the time embedding added between them, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, emb_channels: int, groups: int, dtype: DType) -> None:
        super().__init__()
        # Identities stand for SiLU, which the normalisations include, and for dropout: layers have published indices.
        self.in_layers = nn.SequentialCell(
            GroupNorm(groups, inputs, 1e-5, dtype, silu=True), nn.Identity(), Conv2d(inputs, outputs, 3, dtype)
        )
        self.emb_layers = nn.SequentialCell(nn.SiLU(), Linear(emb_channels, outputs, dtype))
        self.out_layers = nn.SequentialCell(
            GroupNorm(groups, outputs, 1e-5, dtype, silu=True),
            nn.Identity(),
            nn.Identity(),
            Conv2d(outputs, outputs, 3, dtype),
        )
        self.skip_connection = nn.Identity() if inputs == outputs else PointwiseConv2d(inputs, outputs, dtype)

    def construct(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb).expand_dims(-1).expand_dims(-1)
        return self.skip_connection(x) + self.out_layers(h)


class _Downsample(nn.Cell):
    """Halves height and width by a convolution."""

    def __init__(self, channels: int, dtype: DType) -> None:
        super().__init__()
        self.op = Conv2d(channels, channels, 3, dtype, stride=2)

    def construct(self, x: Tensor) -> Tensor:
        return self.op(x)


# Inputs of a layer besides x, by its type; the others take x alone.
_EMB = "emb"
_CONTEXT = "context_kv"
_SIZE = "size"
_ARGUMENT = {_ResBlock: _EMB, SpatialTransformer: _CONTEXT, Upsample: _SIZE}


class UNet(nn.Cell):
    """Noise prediction of noisy latents.

    x [N, in, H, W], timesteps [N] float32, context [N, 77, C] (hidden states of the text encoders) and y [N, V] (class
    embedding; None if `adm_in_channels` is 0) → ε [N, out, H, W] in float32. To predict the noise of many x with one
    context, call `project_context` once and `forward` per x.
    """

    def __init__(self, config: UNetConfig, dtype: DType) -> None:
        super().__init__()
        self.dtype = gm_ops.activation_dtype(dtype)
        self.sinusoids = SinusoidalEmbedding(config.model_channels)
        emb_channels = 4 * config.model_channels
        self.time_embed = _mlp(config.model_channels, emb_channels, dtype)
        self.label_emb = None
        if config.adm_in_channels:
            self.label_emb = nn.SequentialCell(_mlp(config.adm_in_channels, emb_channels, dtype))
        blocks, skips = _input_blocks(config, emb_channels, dtype)
        self.input_blocks = nn.CellList(blocks)
        self.middle_block = _middle_block(skips[-1], config, emb_channels, dtype)
        self.output_blocks = nn.CellList(_output_blocks(config, skips, emb_channels, dtype))
        self.out = nn.SequentialCell(
            GroupNorm(config.norm_num_groups, config.model_channels, 1e-5, dtype, silu=True),
            nn.Identity(),
            Conv2d(config.model_channels, config.out_channels, 3, dtype),
        )
        # Plain data, which a graph reads while it is compiled, when it unrolls the loops over blocks and layers.
        arguments = _layer_arguments([*self.input_blocks, self.middle_block, *self.output_blocks])
        self.input_arguments = arguments[: len(blocks)]
        self.middle_arguments = arguments[len(blocks)]
        self.output_arguments = arguments[len(blocks) + 1 :]

    def construct(self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None) -> Tensor:
        return self.forward(x, timesteps, self.project_context(context), y)

    def project_context(self, context: Tensor) -> tuple[Tensor, ...]:
        """Return key and value of `context` [N, 77, C] for each cross-attention in turn, as one flat tuple.

        They are sequences of `gm.ops.layout`. Flat, because every input of a graph is a tensor.
        """
        context = layout.from_tokens(ops.cast(context, self.dtype))
        context_kv: tuple[Tensor, ...] = ()
        for block, arguments in zip(self.input_blocks, self.input_arguments):
            context_kv = context_kv + self._project_context(block, arguments, context)
        context_kv = context_kv + self._project_context(self.middle_block, self.middle_arguments, context)
        for block, arguments in zip(self.output_blocks, self.output_arguments):
            context_kv = context_kv + self._project_context(block, arguments, context)
        return context_kv

    def forward(self, x: Tensor, timesteps: Tensor, context_kv: tuple[Tensor, ...], y: Tensor | None = None) -> Tensor:
        """Return ε [N, out, H, W] in float32, given the result of `project_context`."""
        emb = self.time_embed(ops.cast(self.sinusoids(timesteps), self.dtype))
        if self.label_emb is not None:
            emb = emb + self.label_emb(ops.cast(y, self.dtype))
        h = ops.cast(x, self.dtype)
        skips: tuple[Tensor, ...] = ()
        for block, arguments in zip(self.input_blocks, self.input_arguments):
            h = self._run_block(block, arguments, h, emb, context_kv, h.shape[2:])
            skips = (*skips, h)
        h = self._run_block(self.middle_block, self.middle_arguments, h, emb, context_kv, h.shape[2:])
        for block, arguments in zip(self.output_blocks, self.output_arguments):
            h = ops.concat((h, skips[-1]), axis=1)
            skips = skips[:-1]
            size = skips[-1].shape[2:] if len(skips) > 0 else h.shape[2:]
            h = self._run_block(block, arguments, h, emb, context_kv, size)
        return ops.cast(self.out(h), ms.float32)

    def _project_context(self, block: nn.CellList, arguments: tuple, context: Tensor) -> tuple[Tensor, ...]:
        context_kv: tuple[Tensor, ...] = ()
        for layer, (name, _, _) in zip(block, arguments):
            if name == _CONTEXT:
                context_kv = context_kv + layer.project_context(context)
        return context_kv

    def _run_block(
        self, block: nn.CellList, arguments: tuple, x: Tensor, emb: Tensor, context_kv: tuple[Tensor, ...], size: tuple
    ) -> Tensor:
        """Run the layers of a block; `size` is the height and width that upsampling restores."""
        for layer, (name, start, stop) in zip(block, arguments):
            if name == _EMB:
                x = layer(x, emb)
            elif name == _CONTEXT:
                x = layer(x, context_kv[start:stop])
            elif name == _SIZE:
                x = layer(x, size)
            else:
                x = layer(x)
        return x


def _layer_arguments(blocks: Iterable[nn.CellList]) -> tuple[tuple[tuple[str, int, int], ...], ...]:
    """Return for each layer of each block the argument that it takes and its slice of `context_kv` (start, stop)."""
    described = []
    start = 0
    for block in blocks:
        arguments = []
        for layer in block:
            stop = start + (2 * len(layer.transformer_blocks) if isinstance(layer, SpatialTransformer) else 0)
            arguments.append((_ARGUMENT.get(type(layer), ""), start, stop))
            start = stop
        described.append(tuple(arguments))
    return tuple(described)


def _mlp(inputs: int, outputs: int, dtype: DType) -> nn.SequentialCell:
    return nn.SequentialCell(Linear(inputs, outputs, dtype), nn.SiLU(), Linear(outputs, outputs, dtype))


def _input_blocks(config: UNetConfig, emb_channels: int, dtype: DType) -> tuple[list[nn.CellList], list[int]]:
    """Return the downsampling blocks and the channels of the skip connection that each of them starts."""
    channels = config.model_channels
    blocks = [nn.CellList([Conv2d(config.in_channels, channels, 3, dtype)])]
    skips = [channels]
    for level, (mult, depth) in enumerate(zip(config.channel_mult, config.transformer_depth)):
        outputs = mult * config.model_channels
        for _ in range(config.num_res_blocks):
            blocks.append(_block(channels, outputs, depth, config, emb_channels, dtype))
            channels = outputs
            skips.append(channels)
        if level < len(config.channel_mult) - 1:
            blocks.append(nn.CellList([_Downsample(channels, dtype)]))
            skips.append(channels)
    return blocks, skips


def _middle_block(channels: int, config: UNetConfig, emb_channels: int, dtype: DType) -> nn.CellList:
    return nn.CellList(
        [
            _ResBlock(channels, channels, emb_channels, config.norm_num_groups, dtype),
            SpatialTransformer(channels, config.middle_depth, config, dtype),
            _ResBlock(channels, channels, emb_channels, config.norm_num_groups, dtype),
        ]
    )


def _output_blocks(config: UNetConfig, skips: list[int], emb_channels: int, dtype: DType) -> list[nn.CellList]:
    """Return the upsampling blocks; each takes one skip connection, last in, first out."""
    remaining = list(skips)
    channels = skips[-1]
    blocks = []
    for level in reversed(range(len(config.channel_mult))):
        outputs = config.channel_mult[level] * config.model_channels
        for index in range(config.num_res_blocks + 1):
            inputs = channels + remaining.pop()
            block = _block(inputs, outputs, config.transformer_depth[level], config, emb_channels, dtype)
            if level > 0 and index == config.num_res_blocks:
                block.append(Upsample(outputs, dtype))
            blocks.append(block)
            channels = outputs
    return blocks


def _block(inputs: int, outputs: int, depth: int, config: UNetConfig, emb_channels: int, dtype: DType) -> nn.CellList:
    layers: list[nn.Cell] = [_ResBlock(inputs, outputs, emb_channels, config.norm_num_groups, dtype)]
    if depth:
        layers.append(SpatialTransformer(outputs, depth, config, dtype))
    return nn.CellList(layers)
