"""Architecture of a model of SDXL's family (Podell et al., 2023); the defaults are SDXL base 1.0.

`docs/architecture.md` has the source of every number. Field names are those of Stability AI's `sgm` configs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gm.config.schema import option
from gm.errors import UserError

KINDS = ("base", "refiner")
PREDICTIONS = ("epsilon", "v_prediction")  # diffusers' names of the noise and of the velocity


@dataclass(frozen=True)
class UNetConfig:
    """UNet (`model.diffusion_model` in the published file)."""

    in_channels: int = option(4, "input channels", minimum=1)
    out_channels: int = option(4, "output channels", minimum=1)
    model_channels: int = option(320, "channels of the first level", minimum=1)
    channel_mult: tuple[int, ...] = option((1, 2, 4), "channels of each level, as multiples of the first")
    num_res_blocks: int = option(2, "residual blocks per level (one more per level of the decoder)", minimum=1)
    transformer_depth: tuple[int, ...] = option((0, 2, 10), "transformer blocks per level; 0 is no attention")
    transformer_depth_middle: int | None = option(
        None, "transformer blocks of the middle block; default: as many as on the last level", minimum=0
    )
    num_head_channels: int = option(64, "channels of an attention head", minimum=1)
    context_dim: int = option(2048, "width of the cross-attention context: all encoders' hidden states", minimum=1)
    adm_in_channels: int = option(2816, "width of y: pooled text and the embeddings of the size values", minimum=1)
    norm_num_groups: int = option(32, "groups of a group normalisation", minimum=1)

    @property
    def middle_depth(self) -> int:
        """Number of transformer blocks in the middle block."""
        return self.transformer_depth[-1] if self.transformer_depth_middle is None else self.transformer_depth_middle


@dataclass(frozen=True)
class TextEncoderConfig:
    """CLIP text encoder: a causal transformer over 77 tokens (Radford et al., 2021)."""

    width: int = option(768, "width of a hidden state", minimum=1)
    layers: int = option(12, "transformer layers", minimum=2)
    heads: int = option(12, "attention heads", minimum=1)
    vocab_size: int = option(49408, "tokens of the vocabulary, without placeholder tokens", minimum=1)
    context_length: int = option(77, "tokens of a prompt, start and end included", minimum=3)


@dataclass(frozen=True)
class VAEConfig:
    """Variational autoencoder between images and latents (`first_stage_model` in the published file)."""

    channels: int = option(128, "channels of the first level", minimum=1)
    channel_mult: tuple[int, ...] = option(
        (1, 2, 4, 4), "multiples of `channels`, one per level; all but the last halve the image"
    )
    num_res_blocks: int = option(2, "residual blocks per level", minimum=1)
    latent_channels: int = option(4, "channels of a latent", minimum=1)
    norm_num_groups: int = option(32, "groups of a group normalisation", minimum=1)
    scale_factor: float = option(0.13025, "latents are multiplied by this before diffusion")

    @property
    def downsample_factor(self) -> int:
        """Side of an image divided by the side of its latents."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class ScheduleConfig:
    """Noise schedule and target of training: "scaled linear" betas (Rombach et al., 2022), names as in diffusers.

    `rescale_betas_zero_snr` is algorithm 1 of Lin et al., 2023 ("Common diffusion noise schedules and sample steps are
    flawed").
    """

    timesteps: int = option(1000, "number of timesteps", minimum=1)
    beta_start: float = option(0.00085, "beta of the first timestep")
    beta_end: float = option(0.012, "beta of the last timestep")
    prediction: str = option(
        "epsilon", "what the UNet predicts: epsilon, the noise, or v_prediction, the velocity", choices=PREDICTIONS
    )
    rescale_betas_zero_snr: bool = option(
        False, "zero terminal SNR: the last timestep is noise alone; for v_prediction"
    )

    def __post_init__(self) -> None:
        if not self.rescale_betas_zero_snr:
            return
        if self.prediction == "epsilon":
            raise UserError(
                "model.schedule.rescale_betas_zero_snr needs model.schedule.prediction v_prediction: at zero SNR the "
                "noise says nothing of the image"
            )
        if self.timesteps < 2:
            raise UserError("model.schedule.rescale_betas_zero_snr needs at least 2 timesteps")


@dataclass(frozen=True)
class ModelConfig:
    """A base model, or a refiner, which has text encoder 2 only and denoises the last steps."""

    kind: str = option("base", "base, or refiner for the last steps", choices=KINDS)
    version: str = option("SD-XL-base-1.0", "first part of the names of embedding files")
    resolution: int = option(1024, "side in pixels of the images that the model was trained on", minimum=8, step=8)
    unet: UNetConfig = field(default_factory=UNetConfig)
    text_encoder_1: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    text_encoder_2: TextEncoderConfig = field(
        default_factory=lambda: TextEncoderConfig(width=1280, layers=32, heads=20)
    )
    vae: VAEConfig = field(default_factory=VAEConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            return  # check_limits reports it
        width = self.text_encoder_2.width
        context_dim = sum(encoder.width for encoder in self.text_encoders.values())
        if self.unet.context_dim != context_dim:
            encoders = "the refiner's text_encoder_2 has" if self.is_refiner else "the two text encoders have"
            raise UserError(
                f"model.unet.context_dim is {self.unet.context_dim}, but {encoders} hidden states of {context_dim}"
            )
        if len(self.unet.channel_mult) != len(self.unet.transformer_depth):
            raise UserError("model.unet.channel_mult and model.unet.transformer_depth need one entry per level each")
        if self.unet.adm_in_channels <= width or (self.unet.adm_in_channels - width) % self.num_size_values:
            raise UserError(
                "model.unet.adm_in_channels must be text_encoder_2.width plus "
                f"{self.num_size_values} size embeddings of equal width"
            )

    @property
    def text_encoders(self) -> dict[str, TextEncoderConfig]:
        """Configs of the text encoders, by name, in the order of their hidden states in the context."""
        if self.is_refiner:
            return {"clip_g": self.text_encoder_2}
        return {"clip_l": self.text_encoder_1, "clip_g": self.text_encoder_2}

    @property
    def is_refiner(self) -> bool:
        """Whether this is a refiner."""
        return self.kind == "refiner"

    @property
    def num_size_values(self) -> int:
        """Number of values in y beside the text: sizes and crop, for a refiner also the aesthetic score."""
        return 5 if self.is_refiner else 6

    @property
    def size_embedding_dim(self) -> int:
        """Width of the sinusoidal embedding of each of these values."""
        return (self.unet.adm_in_channels - self.text_encoder_2.width) // self.num_size_values

    def require(self, kind: str) -> None:
        """Raise UserError if this is not a model of `kind`: training and the first steps need a base model."""
        if self.kind == kind:
            return
        if self.is_refiner:
            raise UserError(
                f"{self.version} is a refiner, which cannot be trained or start an image; give a base model to "
                "--config and --weight, and the refiner to --pipeline_config and --pipeline_weight"
            )
        raise UserError(
            f"{self.version} is a base model; give a refiner, as configs/sampling/sd_xl_refiner.yaml describes one, to "
            "--pipeline_config and --pipeline_weight"
        )
