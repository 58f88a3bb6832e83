"""Architecture of a Stable Diffusion model: SDXL (Podell et al., 2023), 1.x and 2.x; the defaults are SDXL base 1.0.

`docs/architecture.md` has the source of every number. Field names are those of Stability AI's `sgm` and `ldm` configs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gm.config.networks import TextEncoderConfig, UNetConfig, VAEConfig
from gm.config.schema import option
from gm.errors import UserError

KINDS = ("base", "refiner")
PREDICTIONS = ("epsilon", "v_prediction")  # diffusers' names of the noise and of the velocity


@dataclass(frozen=True)
class Family:
    """Traits of a family of models that do not follow from the sizes in its config.

    title: its name in messages
    text_encoders: their names, in the order of their hidden states in the context
    final_hidden_state: the context is the last layer's output after the final norm; else that of the layer before it
    class_embedding: the UNet has a class input y of the pooled text and the sizes
    zero_unconditional: the base model was trained with dropped captions as zeros; else as the encoding of ""
    text_encoder_prefix: of the text encoders in the published file, `{}` being the encoder's index
    """

    title: str
    text_encoders: tuple[str, ...]
    final_hidden_state: bool
    class_embedding: bool
    zero_unconditional: bool
    text_encoder_prefix: str


# Stable Diffusion 1 and 2: `configs/stable-diffusion/v1-inference.yaml` of CompVis/stable-diffusion and
# `v2-inference.yaml` of Stability-AI/stablediffusion, with the encoders in `ldm/modules/encoders/modules.py` there.
FAMILIES = {
    "sdxl": Family("SDXL", ("clip_l", "clip_g"), False, True, True, "conditioner.embedders.{}."),
    "sd1": Family("Stable Diffusion 1", ("clip_l",), True, False, False, "cond_stage_model."),
    "sd2": Family("Stable Diffusion 2", ("clip_h",), True, False, False, "cond_stage_model."),
}
_TEXT_ENCODER_2 = TextEncoderConfig(width=1280, layers=32, heads=20)


@dataclass(frozen=True)
class ScheduleConfig:
    """Noise schedule and target of training: "scaled linear" betas (Rombach et al., 2022), names as in diffusers.

    `rescale_betas_zero_snr` is algorithm 1 of Lin et al., 2023 ("Common diffusion noise schedules and sample steps are
    flawed").
    """

    timesteps: int = option(1000, "number of timesteps", minimum=1, maximum=100_000)
    beta_start: float = option(0.00085, "beta of the first timestep", maximum=1.0)
    beta_end: float = option(0.012, "beta of the last timestep", maximum=1.0)
    prediction: str = option(
        "epsilon", "prediction of the UNet: epsilon, the noise, or v_prediction, the velocity", choices=PREDICTIONS
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
    """A base model, or SDXL's refiner, which has text encoder 2 only and denoises the last steps.

    Stable Diffusion 1 and 2 have one text encoder, `text_encoder_1`.
    """

    family: str = option(
        "sdxl", "family of the model: sdxl, sd1 (Stable Diffusion 1.x) or sd2 (2.x)", choices=tuple(FAMILIES)
    )
    kind: str = option("base", "base, or refiner for the last steps", choices=KINDS)
    version: str = option("SD-XL-base-1.0", "first part of the names of embedding files")
    resolution: int = option(
        1024, "side in pixels of the images that the model was trained on", minimum=8, step=8, maximum=16384
    )
    unet: UNetConfig = field(default_factory=UNetConfig)
    text_encoder_1: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    text_encoder_2: TextEncoderConfig = field(default_factory=lambda: _TEXT_ENCODER_2)
    vae: VAEConfig = field(default_factory=VAEConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.family not in FAMILIES:
            return  # check_limits reports it
        _check_family(self)
        context_dim = sum(encoder.width for encoder in self.text_encoders.values())
        if self.unet.context_dim != context_dim:
            encoders = "the two text encoders have"
            if len(self.text_encoders) == 1:
                encoders = "the refiner's text_encoder_2 has" if self.is_refiner else "the text encoder has"
            raise UserError(
                f"model.unet.context_dim is {self.unet.context_dim}, but {encoders} hidden states of {context_dim}"
            )
        _check_unet(self)

    @property
    def traits(self) -> Family:
        """Traits of the model's family."""
        return FAMILIES[self.family]

    @property
    def text_encoders(self) -> dict[str, TextEncoderConfig]:
        """Configs of the text encoders, by name, in the order of their hidden states in the context."""
        if self.is_refiner:
            return {"clip_g": self.text_encoder_2}
        return dict(zip(self.traits.text_encoders, (self.text_encoder_1, self.text_encoder_2), strict=False))

    @property
    def context_length(self) -> int:
        """Tokens of a prompt, start and end included, which all text encoders have in common."""
        return next(iter(self.text_encoders.values())).context_length

    @property
    def has_class_embedding(self) -> bool:
        """Whether the UNet has a class input: a pooled text vector and the size conditioning."""
        return self.traits.class_embedding

    @property
    def zero_unconditional(self) -> bool:
        """Whether an empty negative prompt is zeros; else it is encoded, as the refiner and SD 1 and 2 have it."""
        return self.traits.zero_unconditional and not self.is_refiner

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
        """Width of the sinusoidal embedding of each of these values, 0 in a model without them."""
        if not self.has_class_embedding:
            return 0
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


def _check_family(model: ModelConfig) -> None:
    """Raise UserError for options that the model's family does not have."""
    title = model.traits.title
    if model.is_refiner and model.family != "sdxl":
        raise UserError(f"model.kind is refiner, but {title} has none; leave it out, or give model.family sdxl")
    if len(model.text_encoders) == 1 and not model.is_refiner and model.text_encoder_2 != _TEXT_ENCODER_2:
        raise UserError(f"{title} has one text encoder, model.text_encoder_1; leave out model.text_encoder_2")
    for number, encoder in enumerate((model.text_encoder_1, model.text_encoder_2), 1):
        name = f"--clip_skip (model.text_encoder_{number}.clip_skip)"
        if model.traits.final_hidden_state and encoder.layers_run < 1:
            raise UserError(f"{name} is {encoder.clip_skip}; it must be at most {encoder.layers}, the encoder's layers")
        if not model.traits.final_hidden_state and encoder.clip_skip > 1:
            raise UserError(
                f"{name} is {encoder.clip_skip}, but {title} always takes the layer before the last; leave it out"
            )
    if not model.has_class_embedding and model.unet.adm_in_channels:
        raise UserError(
            f"model.unet.adm_in_channels is {model.unet.adm_in_channels}, but the UNet of {title} has no class input; "
            "give 0"
        )


def _check_unet(model: ModelConfig) -> None:
    """Raise UserError for sizes of the UNet that contradict each other, or the text encoders."""
    unet = model.unet
    if len(unet.channel_mult) != len(unet.transformer_depth):
        raise UserError("model.unet.channel_mult and model.unet.transformer_depth need one entry per level each")
    if unet.num_heads and any(channels % unet.num_heads for channels in unet.attention_channels):
        channels = ", ".join(map(str, unet.attention_channels))
        raise UserError(
            f"model.unet.num_heads is {unet.num_heads}; it must divide the channels of the levels with attention "
            f"({channels})"
        )
    width = model.text_encoder_2.width
    if model.has_class_embedding and (
        unet.adm_in_channels <= width or (unet.adm_in_channels - width) % model.num_size_values
    ):
        raise UserError(
            "model.unet.adm_in_channels must be text_encoder_2.width plus "
            f"{model.num_size_values} size embeddings of equal width"
        )
