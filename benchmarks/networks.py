"""The networks of SDXL as lists of counted blocks."""

from __future__ import annotations

from benchmarks.counting import (
    Block,
    Part,
    activation,
    attention,
    convolution,
    norm,
    projection,
    table,
    unused,
    without_gradient,
)
from gm.config.model import TextEncoderConfig, UNetConfig, VAEConfig

Side = tuple[int, int]  # height and width


def text_encoder_1(config: TextEncoderConfig, batch: int, flash: bool = False) -> list[Block]:
    """Count CLIP-L up to the layer before the last, whose output SDXL uses; the rest is only loaded."""
    blocks = [_embeddings(config)]
    blocks += [_text_layer(config, batch, flash, gate_copies=2) for _ in range(config.layers - 1)]
    rest = (*_text_layer(config, batch, flash, 2).parts, norm(config.width, 0))
    return [*blocks, Block("never computed", 0, unused(rest))]


def text_encoder_2(config: TextEncoderConfig, batch: int, flash: bool = False) -> list[Block]:
    """Count bigG with all its layers; the last norm and the projection see one token a prompt."""
    width = config.width
    blocks = [_text_layer(config, batch, flash, gate_copies=1) for _ in range(config.layers)]
    pooled = Block("pooled", 0, (norm(width, batch), projection(width, width, batch, bias=False)))
    return [_embeddings(config), *blocks, pooled]


def unet(config: UNetConfig, batch: int, side: Side, tokens: int, flash: bool = False) -> list[Block]:
    """Count the UNet for latents of `side` and prompts of `tokens`."""
    count = _UNet(config, batch, tokens, flash)
    blocks, skips = [count.vector()], []
    channels = config.model_channels
    blocks.append(
        Block("input", 0, without_gradient([convolution(config.in_channels, channels, 3, _area(side, batch))]))
    )
    skips.append((channels, side))
    for level, mult in enumerate(config.channel_mult):
        for index in range(config.num_res_blocks):
            outputs = mult * config.model_channels
            # In the very first block only what follows the time embedding depends on the embedding vectors.
            blocks += count.level(channels, outputs, level, side, first=level == index == 0)
            channels = outputs
            skips.append((channels, side))
        if level < len(config.channel_mult) - 1:
            before, side = side, (-(-side[0] // 2), -(-side[1] // 2))
            halved = convolution(channels, channels, 3, _area(side, batch), _area(before, batch))
            blocks.append(Block("halve", 0, (halved,)))
            skips.append((channels, side))
    blocks.append(count.residual(channels, channels, side))
    blocks += count.transformer(channels, config.middle_depth, side)
    blocks.append(count.residual(channels, channels, side))
    for level in reversed(range(len(config.channel_mult))):
        outputs = config.channel_mult[level] * config.model_channels
        for index in range(config.num_res_blocks + 1):
            blocks += count.level(channels + skips.pop()[0], outputs, level, side)
            channels = outputs
            if level > 0 and index == config.num_res_blocks:
                side = skips[-1][1]
                blocks.append(Block("double", 0, (convolution(channels, channels, 3, _area(side, batch)),)))
    area = _area(side, batch)
    last = (norm(channels, area), activation(channels * area), convolution(channels, config.out_channels, 3, area))
    return [*blocks, Block("output", channels * area, last)]


def vae_encoder(config: VAEConfig, batch: int, side: Side) -> list[Block]:
    """Count the encoder, to both moments, for images of `side`; it has no backward pass."""
    widths = [mult * config.channels for mult in config.channel_mult]
    parts, channels = [convolution(3, config.channels, 3, _area(side, batch))], config.channels
    for level, width in enumerate(widths):
        for _ in range(config.num_res_blocks):
            parts += _vae_residual(channels, width, _area(side, batch))
            channels = width
        if level < len(widths) - 1:
            before, side = side, (side[0] // 2, side[1] // 2)
            parts.append(convolution(channels, channels, 3, _area(side, batch), _area(before, batch)))
    moments = 2 * config.latent_channels
    area = _area(side, batch)
    parts += [*_vae_middle(channels, side, batch), norm(channels, area)]
    parts += [convolution(channels, moments, 3, area), convolution(moments, moments, 1, area)]
    return [Block("encoder", 0, without_gradient(parts))]


def vae_decoder(config: VAEConfig, batch: int, side: Side) -> list[Block]:
    """Count the decoder for latents of `side`; it has no backward pass."""
    widths = [mult * config.channels for mult in config.channel_mult]
    latent, channels = config.latent_channels, widths[-1]
    area = _area(side, batch)
    parts = [convolution(latent, latent, 1, area), convolution(latent, channels, 3, area)]
    parts += _vae_middle(channels, side, batch)
    for level in reversed(range(len(widths))):
        for _ in range(config.num_res_blocks + 1):
            parts += _vae_residual(channels, widths[level], _area(side, batch))
            channels = widths[level]
        if level > 0:
            side = (2 * side[0], 2 * side[1])
            parts.append(convolution(channels, channels, 3, _area(side, batch)))
    area = _area(side, batch)
    return [Block("decoder", 0, without_gradient([*parts, norm(channels, area), convolution(channels, 3, 3, area)]))]


class _UNet:
    """Repeated blocks of a UNet."""

    def __init__(self, config: UNetConfig, batch: int, tokens: int, flash: bool) -> None:
        self.config, self.batch, self.tokens, self.flash = config, batch, tokens, flash
        self.time_width = 4 * config.model_channels

    def vector(self) -> Block:
        """Count two projections each of the timestep, which needs no gradient, and of y, which does."""
        n, width = self.batch, self.time_width
        time = without_gradient([projection(self.config.model_channels, width, n), projection(width, width, n)])
        label = [projection(self.config.adm_in_channels, width, n), projection(width, width, n)]
        return Block("vector", 0, (*time, *label, activation(2 * n * width)))

    def level(self, inputs: int, outputs: int, level: int, side: Side, first: bool = False) -> list[Block]:
        depth = self.config.transformer_depth[level]
        blocks = [self.residual(inputs, outputs, side, first)]
        return blocks + (self.transformer(outputs, depth, side) if depth else [])

    def residual(self, inputs: int, outputs: int, side: Side, first: bool = False) -> Block:
        area = _area(side, self.batch)
        before = [norm(inputs, area), activation(inputs * area), convolution(inputs, outputs, 3, area)]
        if inputs != outputs:
            before.append(projection(inputs, outputs, area))
        injected = projection(self.time_width, outputs, self.batch)
        after = [norm(outputs, area), activation(outputs * area), convolution(outputs, outputs, 3, area)]
        parts = (*(without_gradient(before) if first else before), injected, *after)
        return Block("residual", 0 if first else inputs * area, parts)

    def transformer(self, channels: int, depth: int, side: Side) -> list[Block]:
        area = _area(side, self.batch)
        around = (norm(channels, area), projection(channels, channels, area), projection(channels, channels, area))
        block = self._transformer_block(channels, side)
        return [Block("transformer projections", 0, around), *[block] * depth]

    def _transformer_block(self, c: int, side: Side) -> Block:
        pixels, area, heads = side[0] * side[1], _area(side, self.batch), c // self.config.num_head_channels
        to_itself = projection(c, c, area, bias=False)
        from_text = projection(self.config.context_dim, c, self.tokens * self.batch, bias=False)
        parts = [norm(c, area), to_itself, to_itself, to_itself]
        parts += [attention(c, heads, pixels, pixels, self.batch, self.flash), projection(c, c, area)]
        parts += [norm(c, area), to_itself, from_text, from_text]
        parts += [attention(c, heads, pixels, self.tokens, self.batch, self.flash), projection(c, c, area)]
        # GEGLU saves both halves and the activated one.
        parts += [norm(c, area), projection(c, 8 * c, area), activation(4 * c * area, 3), projection(4 * c, c, area)]
        return Block("transformer", c * area, tuple(parts))


def _embeddings(config: TextEncoderConfig) -> Block:
    return Block("tables", 0, (table(config.vocab_size, config.width), table(config.context_length, config.width)))


def _text_layer(config: TextEncoderConfig, batch: int, flash: bool, gate_copies: int) -> Block:
    w, tokens = config.width, config.context_length * batch
    square = projection(w, w, tokens)
    attend = attention(w, config.heads, config.context_length, config.context_length, batch, flash)
    loader = (projection(w, 4 * w, tokens), activation(4 * w * tokens, gate_copies), projection(4 * w, w, tokens))
    parts = (norm(w, tokens), square, square, square, attend, square, norm(w, tokens), *loader)
    return Block("layer", w * tokens, parts)


def _vae_residual(inputs: int, outputs: int, area: int) -> list[Part]:
    shortcut = [] if inputs == outputs else [convolution(inputs, outputs, 1, area)]
    first, second = convolution(inputs, outputs, 3, area), convolution(outputs, outputs, 3, area)
    return [norm(inputs, area), first, norm(outputs, area), second, *shortcut]


def _vae_middle(channels: int, side: Side, batch: int) -> list[Part]:
    area, residual = _area(side, batch), _vae_residual(channels, channels, _area(side, batch))
    attend = attention(channels, 1, side[0] * side[1], side[0] * side[1], batch, False)
    return [*residual, norm(channels, area), *[projection(channels, channels, area)] * 4, attend, *residual]


def _area(side: Side, batch: int) -> int:
    return side[0] * side[1] * batch
