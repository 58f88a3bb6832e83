"""The networks of SDXL and of Stable Diffusion 1 and 2 as lists of counted blocks."""

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
from gm.config.model import ModelConfig
from gm.config.networks import TextEncoderConfig, UNetConfig, VAEConfig

Side = tuple[int, int]  # height and width


def text_encoders(config: ModelConfig, batch: int, flash: bool = False) -> dict[str, list[Block]]:
    """Count the text encoders in their order, "encoder 1" and, of SDXL, "encoder 2"."""
    encoders = enumerate(config.text_encoders.items(), 1)
    return {f"encoder {k}": _text_encoder(config, name, sizes, batch, flash) for k, (name, sizes) in encoders}


def unet(config: UNetConfig, batch: int, side: Side, tokens: int, flash: bool = False) -> list[Block]:
    """Count the UNet for latents of `side` and prompts of `tokens`."""
    count = _UNet(config, batch, tokens, flash)
    blocks, skips = [count.vector()], []
    channels = config.model_channels
    blocks.append(
        Block("input", 0, count.of_features(convolution(config.in_channels, channels, 3, _area(side, batch))))
    )
    skips.append((channels, side))
    for level, mult in enumerate(config.channel_mult):
        for _ in range(config.num_res_blocks):
            outputs = mult * config.model_channels
            blocks += count.level(channels, outputs, level, side)
            channels = outputs
            skips.append((channels, side))
        if level < len(config.channel_mult) - 1:
            before, side = side, (-(-side[0] // 2), -(-side[1] // 2))
            halved = convolution(channels, channels, 3, _area(side, batch), _area(before, batch))
            blocks.append(Block("halve", 0, count.of_features(halved)))
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
    """Repeated blocks of a UNet, which are counted in their order."""

    def __init__(self, config: UNetConfig, batch: int, tokens: int, flash: bool) -> None:
        self.config, self.batch, self.tokens, self.flash = config, batch, tokens, flash
        self.time_width = 4 * config.model_channels
        self.has_y = config.adm_in_channels > 0
        self.depends = False  # whether the features depend on the embedding vectors: once a block has read y or text

    def of_features(self, *parts: Part) -> tuple[Part, ...]:
        """Return `parts` that read the features alone."""
        return parts if self.depends else without_gradient(parts)

    def vector(self) -> Block:
        """Count two projections each of the timestep, which needs no gradient, and of y if there is one, which does."""
        n, width = self.batch, self.time_width
        time = without_gradient([projection(self.config.model_channels, width, n), projection(width, width, n)])
        label = (projection(self.config.adm_in_channels, width, n), projection(width, width, n))
        return Block("vector", 0, (*time, *label, activation(2 * n * width)) if self.has_y else time)

    def level(self, inputs: int, outputs: int, level: int, side: Side) -> list[Block]:
        depth = self.config.transformer_depth[level]
        blocks = [self.residual(inputs, outputs, side)]
        return blocks + (self.transformer(outputs, depth, side) if depth else [])

    def residual(self, inputs: int, outputs: int, side: Side) -> Block:
        area, saved = _area(side, self.batch), inputs * _area(side, self.batch) if self.depends else 0
        before = [norm(inputs, area), activation(inputs * area), convolution(inputs, outputs, 3, area)]
        if inputs != outputs:
            before.append(projection(inputs, outputs, area))
        parts = self.of_features(*before)
        self.depends = self.depends or self.has_y
        injected = [projection(self.time_width, outputs, self.batch)]
        parts += tuple(injected) if self.has_y else without_gradient(injected)
        after = (norm(outputs, area), activation(outputs * area), convolution(outputs, outputs, 3, area))
        return Block("residual", saved, parts + self.of_features(*after))

    def transformer(self, channels: int, depth: int, side: Side) -> list[Block]:
        """Count `depth` blocks and the projections around them: 1×1 convolutions cost as much as linear ones."""
        area = _area(side, self.batch)
        inwards = self.of_features(norm(channels, area), projection(channels, channels, area))
        blocks = [self._transformer_block(channels, side) for _ in range(depth)]
        outwards = self.of_features(projection(channels, channels, area))
        return [Block("transformer projections", 0, inwards + outwards), *blocks]

    def _transformer_block(self, c: int, side: Side) -> Block:
        pixels, area, heads = side[0] * side[1], _area(side, self.batch), self.config.heads(c)
        to_itself = projection(c, c, area, bias=False)
        from_text = projection(self.config.context_dim, c, self.tokens * self.batch, bias=False)
        to_pixels = attention(c, heads, pixels, pixels, self.batch, self.flash)
        parts = self.of_features(norm(c, area), to_itself, to_itself, to_itself, to_pixels, projection(c, c, area))
        parts += self.of_features(norm(c, area), to_itself)
        to_text = attention(c, heads, pixels, self.tokens, self.batch, self.flash, query_gradient=self.depends)
        self.depends = True
        parts += (from_text, from_text, to_text, projection(c, c, area))
        # GEGLU saves both halves and the activated one.
        parts += (norm(c, area), projection(c, 8 * c, area), activation(4 * c * area, 3), projection(4 * c, c, area))
        return Block("transformer", c * area, parts)


def _text_encoder(config: ModelConfig, name: str, sizes: TextEncoderConfig, batch: int, flash: bool) -> list[Block]:
    """Count a text encoder: all layers, except that SDXL only loads CLIP-L's last one, whose input it reads."""
    width, tokens = sizes.width, sizes.context_length * batch
    # CLIP-L's quick GELU saves its input and its gate.
    layer = _text_layer(sizes, batch, flash, gate_copies=2 if name == "clip_l" else 1)
    if config.traits.final_hidden_state:
        last = [layer, Block("final norm", 0, (norm(width, tokens),))]
    elif name == "clip_g":  # the last norm and the projection see one token a prompt
        last = [layer, Block("pooled", 0, (norm(width, batch), projection(width, width, batch, bias=False)))]
    else:
        last = [Block("never computed", 0, unused((*layer.parts, norm(width, 0))))]
    return [_embeddings(sizes), *[layer] * (sizes.layers - 1), *last]


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
