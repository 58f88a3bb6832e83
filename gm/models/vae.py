"""Variational autoencoder of latent diffusion models (Rombach et al., 2022), with the published checkpoint's names.

It runs in float32: with SDXL's published weights, activations overflow float16.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm import ops as gm_ops
from gm.config.networks import VAEConfig
from gm.models.layers import Conv2d, GroupNorm, PointwiseConv2d, Upsample
from gm.ops import layout

_EPSILON = 1e-6


class _ResnetBlock(nn.Cell):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, inputs, _EPSILON, silu=True)
        self.conv1 = Conv2d(inputs, outputs, 3, ms.float32)
        self.norm2 = GroupNorm(groups, outputs, _EPSILON, silu=True)
        self.conv2 = Conv2d(outputs, outputs, 3, ms.float32)
        self.nin_shortcut = None if inputs == outputs else PointwiseConv2d(inputs, outputs, ms.float32)

    def construct(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        if self.nin_shortcut is not None:
            x = self.nin_shortcut(x)
        return x + h


class _AttnBlock(nn.Cell):
    """Self-attention over all pixels, with one head."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, _EPSILON)
        self.q = PointwiseConv2d(channels, channels, ms.float32)
        self.k = PointwiseConv2d(channels, channels, ms.float32)
        self.v = PointwiseConv2d(channels, channels, ms.float32)
        self.proj_out = PointwiseConv2d(channels, channels, ms.float32)
        self.attend = gm_ops.attention(heads=1)
        self.swap = layout.swap_leading_axes()

    def construct(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        query, key, value = (layout.from_image(layer(h), self.swap) for layer in (self.q, self.k, self.v))
        attended = layout.to_image(self.attend(query, key, value), self.swap, *x.shape[2:])
        return x + self.proj_out(attended)


class _Middle(nn.Cell):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = _ResnetBlock(channels, channels, groups)
        self.attn_1 = _AttnBlock(channels, groups)
        self.block_2 = _ResnetBlock(channels, channels, groups)

    def construct(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Downsample(nn.Cell):
    """Halves height and width; pads at right and bottom only, as in training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, ms.float32, stride=2, padding=(0, 1, 0, 1))

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Level(nn.Cell):
    """Residual blocks at one resolution, then an optional resampler, "down" or "up"."""

    def __init__(self, inputs: int, outputs: int, num_blocks: int, groups: int, resampler: str) -> None:
        super().__init__()
        self.block = nn.CellList([_ResnetBlock(outputs if i else inputs, outputs, groups) for i in range(num_blocks)])
        self.downsample = _Downsample(outputs) if resampler == "down" else None
        self.upsample = Upsample(outputs, ms.float32) if resampler == "up" else None

    def construct(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


class _Encoder(nn.Cell):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [mult * config.channels for mult in config.channel_mult]
        self.conv_in = Conv2d(3, config.channels, 3, ms.float32)
        self.down = nn.CellList()
        inputs = config.channels
        for level, width in enumerate(widths):
            resampler = "down" if level < len(widths) - 1 else ""
            self.down.append(_Level(inputs, width, config.num_res_blocks, config.norm_num_groups, resampler))
            inputs = width
        self.mid = _Middle(widths[-1], config.norm_num_groups)
        self.norm_out = GroupNorm(config.norm_num_groups, widths[-1], _EPSILON, silu=True)
        self.conv_out = Conv2d(widths[-1], 2 * config.latent_channels, 3, ms.float32)

    def construct(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out(self.mid(x)))


class _Decoder(nn.Cell):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [mult * config.channels for mult in config.channel_mult]
        self.num_levels = len(widths)
        self.conv_in = Conv2d(config.latent_channels, widths[-1], 3, ms.float32)
        self.mid = _Middle(widths[-1], config.norm_num_groups)
        self.up = nn.CellList()  # in the published order: full resolution first, although it is computed last
        for level, width in enumerate(widths):
            inputs = widths[min(level + 1, len(widths) - 1)]
            resampler = "up" if level > 0 else ""
            self.up.append(_Level(inputs, width, config.num_res_blocks + 1, config.norm_num_groups, resampler))
        self.norm_out = GroupNorm(config.norm_num_groups, widths[0], _EPSILON, silu=True)
        self.conv_out = Conv2d(widths[0], 3, 3, ms.float32)

    def construct(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for index in range(self.num_levels):
            x = self.up[self.num_levels - 1 - index](x)
        return self.conv_out(self.norm_out(x))


class AutoencoderKL(nn.Cell):
    """Autoencoder with a KL-regularised latent space (Kingma and Welling, 2014).

    Images [N, 3, H, W] in -1…1 ↔ unscaled latents [N, z, H/r, W/r], r being `config.downsample_factor`.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quant_conv = PointwiseConv2d(2 * config.latent_channels, 2 * config.latent_channels, ms.float32)
        self.post_quant_conv = PointwiseConv2d(config.latent_channels, config.latent_channels, ms.float32)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the posterior, each [N, z, H/r, W/r]."""
        mean, log_variance = ops.chunk(self.quant_conv(self.encoder(images)), 2, axis=1)
        return mean, ops.clamp(log_variance, -30.0, 20.0)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [N, 3, H, W], about -1…1."""
        return self.decoder(self.post_quant_conv(latents))
