"""The shape of a model of SDXL's family; the defaults are SDXL base 1.0 (`docs/architecture.md` cites its numbers)."""

from __future__ import annotations

from dataclasses import dataclass, field

from gm.config.schema import option
from gm.errors import UserError

KINDS = ("base", "refiner")


@dataclass(frozen=True)
class UNetConfig:
    """The denoising network (`model.diffusion_model` in the published file)."""

    in_channels: int = option(4, "latent channels in", minimum=1)
    out_channels: int = option(4, "latent channels out", minimum=1)
    model_channels: int = option(320, "channels of the first level", minimum=1)
    channel_mult: tuple[int, ...] = option((1, 2, 4), "channels of each level, as multiples of the first")
    num_res_blocks: int = option(2, "residual blocks a level (one more on the way up)", minimum=1)
    transformer_depth: tuple[int, ...] = option((0, 2, 10), "transformer blocks a level; 0 is no attention")
    transformer_depth_middle: int | None = option(
        None, "transformer blocks in the middle; default: as many as on the last level", minimum=0
    )
    num_head_channels: int = option(64, "width of an attention head", minimum=1)
    context_dim: int = option(2048, "width of the text context: all encoders' hidden states", minimum=1)
    adm_in_channels: int = option(2816, "width of the class input: pooled text and a sinusoid a size", minimum=1)
    norm_num_groups: int = option(32, "groups of a group normalisation", minimum=1)

    @property
    def middle_depth(self) -> int:
        """Transformer blocks of the middle block."""
        return self.transformer_depth[-1] if self.transformer_depth_middle is None else self.transformer_depth_middle


@dataclass(frozen=True)
class TextEncoderConfig:
    """A CLIP text encoder: causal transformer over 77 tokens."""

    width: int = option(768, "width of a token", minimum=1)
    layers: int = option(12, "transformer layers", minimum=2)
    heads: int = option(12, "attention heads", minimum=1)
    vocab_size: int = option(49408, "tokens of the vocabulary, without placeholder tokens", minimum=1)
    context_length: int = option(77, "tokens of a prompt, start and end included", minimum=3)


@dataclass(frozen=True)
class VAEConfig:
    """The variational autoencoder between images and latents (`first_stage_model`)."""

    channels: int = option(128, "channels of the first level", minimum=1)
    channel_mult: tuple[int, ...] = option((1, 2, 4, 4), "channels of each level; each but the last halves the image")
    num_res_blocks: int = option(2, "residual blocks a level", minimum=1)
    latent_channels: int = option(4, "channels of a latent", minimum=1)
    norm_num_groups: int = option(32, "groups of a group normalisation", minimum=1)
    scale_factor: float = option(0.13025, "latents are multiplied by this before diffusion")

    @property
    def reduction(self) -> int:
        """Pixels a side that become one latent."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule of training, "scaled linear" betas (Rombach et al., 2022)."""

    timesteps: int = option(1000, "noise levels", minimum=1)
    beta_start: float = option(0.00085, "beta of the first level")
    beta_end: float = option(0.012, "beta of the last level")


@dataclass(frozen=True)
class ModelConfig:
    """One SDXL-family model: a base model, or a refiner, which has text encoder 2 alone and draws the last steps."""

    kind: str = option("base", "what the model does: draw, or refine what a base model drew", choices=KINDS)
    version: str = option("SD-XL-base-1.0", "name at the front of the files that training writes")
    resolution: int = option(1024, "side in pixels the model was made for", minimum=8, step=8)
    unet: UNetConfig = field(default_factory=UNetConfig)
    text_encoder_1: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    text_encoder_2: TextEncoderConfig = field(
        default_factory=lambda: TextEncoderConfig(width=1280, layers=32, heads=20)
    )
    vae: VAEConfig = field(default_factory=VAEConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            return  # which is the mistake to name, when limits are checked
        width = self.text_encoder_2.width
        joined = width if self.is_refiner else self.text_encoder_1.width + width
        if self.unet.context_dim != joined:
            encoders = (
                "the refiner's one encoder, text_encoder_2, gives" if self.is_refiner else "the two encoders give"
            )
            raise UserError(f"model.unet.context_dim is {self.unet.context_dim}, but {encoders} {joined}")
        if len(self.unet.channel_mult) != len(self.unet.transformer_depth):
            raise UserError("model.unet.channel_mult and model.unet.transformer_depth need one entry a level each")
        if self.unet.adm_in_channels <= width or (self.unet.adm_in_channels - width) % self.sizes:
            count = "five equal sinusoids of sizes and score" if self.is_refiner else "six equal size sinusoids"
            raise UserError(f"model.unet.adm_in_channels must be text_encoder_2.width plus {count}")

    @property
    def text_encoders(self) -> dict[str, TextEncoderConfig]:
        """The text encoders that a model of this kind has, by name, in the order of their hidden states."""
        both = {"clip_l": self.text_encoder_1, "clip_g": self.text_encoder_2}
        return {"clip_g": self.text_encoder_2} if self.is_refiner else both

    @property
    def is_refiner(self) -> bool:
        """Whether the model refines, rather than draws."""
        return self.kind == "refiner"

    @property
    def sizes(self) -> int:
        """How many numbers the class input tells beside the text."""
        return 5 if self.is_refiner else 6

    @property
    def size_embedding_dim(self) -> int:
        """Width of the sinusoid of each of these numbers in the class input."""
        return (self.unet.adm_in_channels - self.text_encoder_2.width) // self.sizes

    def require(self, kind: str) -> None:
        """Raise UserError if this is not a model of `kind`: only a base model learns words and begins images."""
        if self.kind == kind:
            return
        if self.is_refiner:
            raise UserError(
                f"{self.version} is a refiner, which learns no words and begins no images; give a base model to "
                "--config and --weight, and the refiner to --pipeline_config and --pipeline_weight"
            )
        raise UserError(
            f"{self.version} is a base model; give a refiner, as configs/sampling/sd_xl_refiner.yaml describes one, to "
            "--pipeline_config and --pipeline_weight"
        )
