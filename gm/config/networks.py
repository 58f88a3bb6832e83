"""Sizes of a model's networks: UNet, text encoders and VAE; the defaults are SDXL base 1.0 (Podell et al., 2023).

`docs/architecture.md` has the source of every number. Field names are those of Stability AI's `sgm` and `ldm` configs.
"""

from __future__ import annotations

from dataclasses import dataclass

from gm.config.schema import option


@dataclass(frozen=True)
class UNetConfig:
    """UNet (`model.diffusion_model` in the published file)."""

    in_channels: int = option(4, "input channels", minimum=1, maximum=1024)
    out_channels: int = option(4, "output channels", minimum=1, maximum=1024)
    model_channels: int = option(320, "channels of the first level", minimum=1, maximum=8192)
    channel_mult: tuple[int, ...] = option(
        (1, 2, 4), "channels of each level, as multiples of the first", minimum=1, maximum=64
    )
    num_res_blocks: int = option(
        2, "residual blocks per level (one more per level of the decoder)", minimum=1, maximum=64
    )
    transformer_depth: tuple[int, ...] = option(
        (0, 2, 10), "transformer blocks per level; 0 is no attention", minimum=0, maximum=128
    )
    transformer_depth_middle: int | None = option(
        None, "transformer blocks of the middle block; default: as many as on the last level", minimum=0, maximum=128
    )
    num_head_channels: int = option(64, "channels of an attention head", minimum=1, maximum=8192)
    context_dim: int = option(
        2048, "width of the cross-attention context: all encoders' hidden states", minimum=1, maximum=65536
    )
    adm_in_channels: int = option(
        2816,
        "width of y: pooled text and the embeddings of the size values; 0 for a UNet without y",
        minimum=0,
        maximum=65536,
    )
    norm_num_groups: int = option(32, "groups of a group normalisation", minimum=1, maximum=8192)
    num_heads: int | None = option(
        None, "attention heads of every level; default: as many as num_head_channels gives", minimum=1, maximum=8192
    )
    use_linear_in_transformer: bool = option(
        True, "linear projections around the transformer blocks; False: 1×1 convolutions, the same with other shapes"
    )
    upcast_attention: bool = option(
        False, "attention scores in float32, as in flash attention; those of Stable Diffusion 2.1 overflow float16"
    )

    @property
    def middle_depth(self) -> int:
        """Number of transformer blocks in the middle block."""
        return self.transformer_depth[-1] if self.transformer_depth_middle is None else self.transformer_depth_middle

    @property
    def attention_channels(self) -> list[int]:
        """Channels of every level that has attention, the middle block's last."""
        levels = [*zip(self.channel_mult, self.transformer_depth, strict=False), (self.channel_mult[-1], 1)]
        return [mult * self.model_channels for mult, depth in levels if depth]

    def heads(self, channels: int) -> int:
        """Return the number of attention heads of a level of `channels`."""
        return self.num_heads or channels // self.num_head_channels


@dataclass(frozen=True)
class TextEncoderConfig:
    """CLIP text encoder: a causal transformer over 77 tokens (Radford et al., 2021)."""

    width: int = option(768, "width of a hidden state", minimum=1, maximum=65536)
    layers: int = option(
        12, "transformer layers; of Stable Diffusion 2 those that run, 23 of 24", minimum=2, maximum=256
    )
    heads: int = option(12, "attention heads", minimum=1, maximum=8192)
    vocab_size: int = option(
        49408, "tokens of the vocabulary, without placeholder tokens", minimum=1, maximum=1_000_000
    )
    context_length: int = option(77, "tokens of a prompt, start and end included", minimum=3, maximum=8192)
    clip_skip: int = option(
        1,
        "for Stable Diffusion 1 and 2: layer, counted from the last one as 1, whose output after the final norm is the "
        "context; anime models of Stable Diffusion 1 need 2 (AUTOMATIC1111's Clip skip)",
        minimum=1,
        maximum=256,
    )

    @property
    def layers_run(self) -> int:
        """Number of layers that the context of Stable Diffusion 1 and 2 needs."""
        return self.layers - self.clip_skip + 1


@dataclass(frozen=True)
class VAEConfig:
    """Variational autoencoder between images and latents (`first_stage_model` in the published file)."""

    channels: int = option(128, "channels of the first level", minimum=1, maximum=8192)
    channel_mult: tuple[int, ...] = option(
        (1, 2, 4, 4), "multiples of `channels`, one per level; all but the last halve the image", minimum=1, maximum=64
    )
    num_res_blocks: int = option(2, "residual blocks per level", minimum=1, maximum=64)
    latent_channels: int = option(4, "channels of a latent", minimum=1, maximum=1024)
    norm_num_groups: int = option(32, "groups of a group normalisation", minimum=1, maximum=8192)
    scale_factor: float = option(0.13025, "latents are multiplied by this before diffusion", maximum=1000.0)

    @property
    def downsample_factor(self) -> int:
        """Side of an image divided by the side of its latents."""
        return 2 ** (len(self.channel_mult) - 1)
