"""Every option, once: its name, type, default, limits and one line of documentation.

The YAML files, the command-line flags and their help are all generated from these dataclasses. Values merge in the
order defaults < YAML < command line. Full-size SDXL 1.0 is the default model (`docs/house.md` cites its numbers).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gm import options
from gm.errors import UserError
from gm.options import option

POOLING_RULES = ("end_of_text", "argmax")


@dataclass(frozen=True)
class UNetConfig:
    """The denoising network (`model.diffusion_model` in the published file)."""

    in_channels: int = option(4, "latent channels in", minimum=1)
    out_channels: int = option(4, "latent channels out", minimum=1)
    model_channels: int = option(320, "channels of the first level", minimum=1)
    channel_mult: tuple[int, ...] = option((1, 2, 4), "channels of each level, as multiples of the first")
    num_res_blocks: int = option(2, "residual blocks a level (one more on the way up)", minimum=1)
    transformer_depth: tuple[int, ...] = option((0, 2, 10), "transformer blocks a level; 0 is no attention")
    head_width: int = option(64, "width of an attention head", minimum=1)
    context_width: int = option(2048, "width of the text context: both encoders' hidden states", minimum=1)
    vector_width: int = option(2816, "width of the class input: pooled text and six size sinusoids", minimum=1)
    norm_groups: int = option(32, "groups of a group normalisation", minimum=1)


@dataclass(frozen=True)
class TextEncoderConfig:
    """A CLIP text encoder: causal transformer over 77 tokens."""

    width: int = option(768, "width of a token", minimum=1)
    layers: int = option(12, "transformer layers", minimum=2)
    heads: int = option(12, "attention heads", minimum=1)
    vocabulary: int = option(49408, "rows of the published token table", minimum=1)
    positions: int = option(77, "tokens of a prompt, start and end included", minimum=3)


@dataclass(frozen=True)
class AutoencoderConfig:
    """The variational autoencoder between pictures and latents (`first_stage_model`)."""

    channels: int = option(128, "channels of the first level", minimum=1)
    channel_mult: tuple[int, ...] = option((1, 2, 4, 4), "channels of each level; each but the last halves the picture")
    num_res_blocks: int = option(2, "residual blocks a level", minimum=1)
    latent_channels: int = option(4, "channels of a latent", minimum=1)
    norm_groups: int = option(32, "groups of a group normalisation", minimum=1)
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
    """One SDXL-family model."""

    version: str = option("SD-XL-base-1.0", "name at the front of the files that training writes")
    resolution: int = option(1024, "side in pixels the model was made for", minimum=8, step=8)
    unet: UNetConfig = field(default_factory=UNetConfig)
    text_encoder_1: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    text_encoder_2: TextEncoderConfig = field(
        default_factory=lambda: TextEncoderConfig(width=1280, layers=32, heads=20)
    )
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        joined = self.text_encoder_1.width + self.text_encoder_2.width
        if self.unet.context_width != joined:
            raise UserError(
                f"model.unet.context_width is {self.unet.context_width}, but the two encoders give {joined}"
            )
        if len(self.unet.channel_mult) != len(self.unet.transformer_depth):
            raise UserError("model.unet.channel_mult and model.unet.transformer_depth need one entry a level each")
        if (
            self.unet.vector_width <= self.text_encoder_2.width
            or (self.unet.vector_width - self.text_encoder_2.width) % 6
        ):
            raise UserError("model.unet.vector_width must be text_encoder_2.width plus six equal size sinusoids")

    @property
    def size_width(self) -> int:
        """Width of the sinusoid of each of the six sizes in the class input."""
        return (self.unet.vector_width - self.text_encoder_2.width) // 6


@dataclass(frozen=True)
class RunConfig:
    """What to run: weights, device and mode."""

    device_target: str = option(
        "", "Ascend or CPU; without it Ascend where present, else CPU", choices=("", "Ascend", "CPU")
    )
    ms_mode: int = option(0, "0 compiles a graph (fast steps), 1 is PyNative (starts at once)", choices=(0, 1))
    precision: str = option(
        "auto",
        "of the frozen weights; auto is float16 on Ascend and float32 on CPU",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    low_memory: str = option(
        "auto",
        "float16 weights that stay so in memory and are widened to float32 at each use: same numbers, slower steps; "
        "auto is some in PyNative mode on CPU, else off",
        choices=("auto", "off", "some", "most"),
    )
    weight: str = option("checkpoints/sd_xl_base_1.0_ms.ckpt", "the model's weights: .ckpt or .safetensors")
    pooling: str = option(
        "end_of_text",
        "token the pooled text vector is read at; argmax is what diffusers and mindone do",
        choices=POOLING_RULES,
    )


@dataclass(frozen=True)
class ConceptConfig:
    """The word to learn."""

    placeholder_token: str = option("<concept>", "the new word; may not be a single token already")
    num_vectors: int = option(1, "rows learned in each text encoder", minimum=1)
    initializer_token: str | None = option(None, "word or phrase whose rows to start from; without it random rows")
    learnable_property: str = option("object", "what the pictures share", choices=("object", "style", "face"))
    template_file: str | None = option(None, "text file of prompts, one a line, with {} where the word goes")


@dataclass(frozen=True)
class DataConfig:
    """The pictures to learn from."""

    data_path: str = option("", "folder of 3 to 20 pictures")
    resolution: int | None = option(None, "side in pixels to train at; default: the model's own", minimum=8, step=8)
    flip: bool = option(False, "also show each picture mirrored; off by default, for faces and lettering")


@dataclass(frozen=True)
class TrainingConfig:
    """How to learn."""

    save_path: str = option("runs/concept", "folder for learned files, logs and previews")
    seed: int = option(42, "of everything random in the run", minimum=0)
    total_step: int = option(3000, "steps; a step is one forward and backward pass of a batch", minimum=1)
    train_batch_size: int = option(1, "pictures a step and rank", minimum=1)
    gradient_accumulation_steps: int = option(1, "steps that make one update of the rows", minimum=1)
    learning_rate: float = option(1e-3, "peak learning rate of the rows", minimum=0.0)
    lr_schedule: str = option("constant", "learning rate after warm-up", choices=("constant", "linear", "cosine"))
    lr_warmup_updates: int = option(0, "updates over which the learning rate rises from 0", minimum=0)
    adam_beta1: float = option(0.9, "decay of Adam's mean gradient", minimum=0.0)
    adam_beta2: float = option(0.999, "decay of Adam's mean squared gradient", minimum=0.0)
    adam_epsilon: float = option(1e-8, "added to Adam's denominator", minimum=0.0)
    weight_decay: float = option(
        0.0, "decoupled weight decay of the rows; 0 is right for almost everybody", minimum=0.0
    )
    max_grad_norm: float = option(1.0, "global norm the rows' gradient is clipped to; 0 never clips", minimum=0.0)
    resume: str | None = option(
        None, "go on from a saved state: latest (the newest in --save_path, if any) or the path of one"
    )
    save_state_interval: int = option(50, "steps between states to resume from; the last step writes one", minimum=1)
    keep_states: int = option(2, "newest states that are kept", minimum=1)
    max_skipped_steps: int = option(
        25, "steps in a row without a finite loss and gradient after which the run stops", minimum=1
    )
    save_ckpt_interval: int = option(500, "steps between learned files; the last step always writes one", minimum=1)
    held_out_draws: int = option(
        0, "draws kept from training, on which the loss is measured before and after; 0 is none", minimum=0
    )
    log_interval: int = option(1, "steps between records in the JSON-lines log", minimum=1)
    infer_during_train: bool = option(False, "draw previews, as the sampling section says, at intervals and at the end")
    infer_interval: int = option(500, "steps between previews", minimum=1)
    infer_prompt: str | None = option(None, "prompt of the previews, {} is the new word; default: the first template")
    is_parallel: bool = option(False, "share the work between the processes that mpirun or msrun started")
    rank_timeout: int = option(1800, "seconds that a process waits for the others before it gives up", minimum=1)


@dataclass(frozen=True)
class SamplingConfig:
    """What to draw."""

    task: str = option("txt2img", "what to make pictures from", choices=("txt2img",))
    textual_inversion_weight: list[str] = option([], "learned files to use, any number")
    prompt: str = option("", "what to draw, or a text file with a prompt a line")
    negative_prompt: str = option("", "what to keep away from; empty zeroes the unconditional side")
    sampler: str = option("euler", "how to walk from noise to picture")
    sample_step: int = option(40, "steps of the sampler", minimum=1)
    guidance_scale: float = option(5.0, "strength of the prompt; 1 is no guidance", minimum=0.0)
    seed: int = option(42, "of the first picture; picture k uses seed + k", minimum=0)
    num_cols: int = option(1, "pictures in a row of the grid", minimum=1)
    num_rows: int = option(1, "rows of the grid", minimum=1)
    batch_size: int = option(1, "pictures drawn at once; changes memory and speed, not the pictures", minimum=1)
    save_path: str = option("outputs", "folder for the pictures")
    height: int | None = option(None, "of a picture in pixels; default: the model's own", minimum=8, step=8)
    width: int | None = option(None, "of a picture in pixels; default: the model's own", minimum=8, step=8)
    sd_xl_base_ratios: str | None = option(
        None, "one of SDXL's sizes by its ratio of width to height, such as 1.0 or 1.75"
    )
    orig_height: int | None = option(None, "height the model is told the original had; default: height", minimum=1)
    orig_width: int | None = option(None, "width the model is told the original had; default: width", minimum=1)
    target_height: int | None = option(None, "height the model is told to aim at; default: height", minimum=1)
    target_width: int | None = option(None, "width the model is told to aim at; default: width", minimum=1)
    crop_coords_top: int = option(0, "top edge of the crop the model is told", minimum=0)
    crop_coords_left: int = option(0, "left edge of the crop the model is told", minimum=0)
    init_latent_path: str | None = option(None, ".npy of standard-normal noise [N,4,H/8,W/8] to start from")


@dataclass(frozen=True)
class Config:
    """Everything. A YAML file has these sections."""

    model: ModelConfig = field(default_factory=ModelConfig)
    run: RunConfig = field(default_factory=RunConfig)
    concept: ConceptConfig = field(default_factory=ConceptConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def load(path: str | Path | None = None, overrides: dict[str, dict[str, Any]] | None = None) -> Config:
    """Return defaults < the YAML file at `path` < `overrides` (`{"training": {"total_step": 10}}`).

    Raises UserError as `options.merged` does.
    """
    return options.merged(Config, path, overrides or {})


def save(config: Config, path: str | Path) -> None:
    """Write `config` as YAML that `load` reads back to an equal Config."""
    Path(path).write_text(options.written(dataclasses.asdict(config)), encoding="utf-8")


def check(config: Config) -> None:
    """Raise UserError if an option is outside its limits."""
    options.check_limits(config)
