"""All options: name, type, default, limits and one line of documentation.

YAML files, command-line flags and their help follow these dataclasses. Values are merged in the order defaults < YAML
file < command line. The default model is SDXL base 1.0.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gm.config import schema
from gm.config.model import ModelConfig
from gm.config.schema import option

POOLING_RULES = ("end_of_text", "argmax")


@dataclass(frozen=True)
class RunConfig:
    """Weights, device and mode."""

    device_target: str = option("", "device; default: Ascend if there is one, else CPU", choices=("", "Ascend", "CPU"))
    ms_mode: int = option(0, "0: graph mode (compiled, fast steps), 1: PyNative mode (starts at once)", choices=(0, 1))
    precision: str = option(
        "auto",
        "dtype of the frozen weights; auto is float16 on Ascend and float32 on CPU",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    low_memory: str = option(
        "auto",
        "keep weights in float16 and cast them to float32 at each use: same results, less memory, slower steps; auto "
        "is some in PyNative mode on CPU, else off",
        choices=("auto", "off", "some", "most"),
    )
    weight: str = option("checkpoints/sd_xl_base_1.0_ms.ckpt", "weights of the model: .ckpt or .safetensors")
    pooling: str = option(
        "end_of_text",
        "token whose hidden state is the pooled text embedding; argmax is the rule of diffusers and mindone",
        choices=POOLING_RULES,
    )


@dataclass(frozen=True)
class WordConfig:
    """What each of several words has of its own."""

    placeholder_token: str = option("<concept>", "the new word; may not be a single token already")
    num_vectors: int = option(1, "rows learned in each text encoder", minimum=1)
    initializer_file: str | None = option(
        None, "embedding file whose rows to start from, as many as are needed, over and over"
    )
    initializer_token: str | None = option(None, "word or phrase whose rows to start from; without it random rows")
    learnable_property: str = option("object", "what the images share", choices=("object", "style", "face"))
    template_file: str | None = option(None, "text file of prompts, one a line, with {} where the word goes")


@dataclass(frozen=True)
class ConceptConfig(WordConfig):
    """The word to learn, or several at once."""

    concepts: list[Any] = option(
        [],
        "several words: of each a YAML mapping, {placeholder_token: <a>, data_path: folder}, of what is its own among "
        "these options, data_path, repeats and negative; or a YAML file with a list of them",
    )


@dataclass(frozen=True)
class DataConfig:
    """The images to learn from."""

    data_path: str = option("", "folder of 3 to 20 images")
    resolution: int | None = option(None, "side in pixels to train at; default: the model's own", minimum=8, step=8)
    enable_bucket: bool = option(
        False, "keep about the shape of each image, by several sizes of the resolution's area; a graph for each"
    )
    bucket_reso_steps: int = option(64, "what both sides of these sizes are multiples of", minimum=8, step=8)
    masks: bool = option(
        True, "learn only what an image's mask shows white, name.mask.png beside it or its alpha channel"
    )
    unmasked_weight: float = option(0.0, "how much what is masked still counts, from 0 to 1", minimum=0.0, maximum=1.0)
    captions: bool = option(
        True, "use captions, name.txt or metadata.jsonl beside the images, where there are any, instead of templates"
    )
    template_probability: float = option(
        0.0, "part of the steps that show a captioned image with a template all the same", minimum=0.0, maximum=1.0
    )
    caption_dropout_rate: float = option(
        0.0, "part of the steps whose prompt is the new word alone", minimum=0.0, maximum=1.0
    )
    random_flip: bool = option(False, "also show each image mirrored; off by default, for faces and lettering")


@dataclass(frozen=True)
class TrainingConfig:
    """How to learn."""

    save_path: str = option("runs/concept", "folder for embedding files, logs and previews")
    seed: int = option(42, "of everything random in the run", minimum=0)
    total_step: int = option(3000, "steps; a step is one forward and backward pass of a batch", minimum=1)
    train_batch_size: int = option(1, "images a step and rank", minimum=1)
    gradient_accumulation_steps: int = option(1, "steps that make one update of the rows", minimum=1)
    learning_rate: float = option(1e-3, "peak learning rate of the rows", minimum=0.0)
    learning_rate_clip_l: float | None = option(
        None, "peak for the rows of CLIP-L, where it differs; 0 leaves them as they are", minimum=0.0
    )
    learning_rate_clip_g: float | None = option(
        None, "peak for the rows of OpenCLIP bigG, where it differs; 0 leaves them as they are", minimum=0.0
    )
    scale_lr: bool = option(False, "multiply learning rates by batch size, accumulation steps and number of devices")
    lr_scheduler: str = option(
        "constant",
        "learning rate after warm-up",
        choices=("constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "one_cycle"),
        aliases=(),
    )
    lr_warmup_steps: int = option(0, "updates over which the learning rate rises from 0", minimum=0)
    lr_num_cycles: int = option(1, "how often cosine_with_restarts falls", minimum=1)
    lr_power: float = option(1.0, "exponent of the polynomial schedule", minimum=0.0)
    optimizer: str = option(
        "adam", "adam, or prodigy, which finds its learning rate itself: give 1", choices=("adam", "prodigy")
    )
    adam_beta1: float = option(0.9, "decay of Adam's mean gradient", minimum=0.0)
    adam_beta2: float = option(0.999, "decay of Adam's mean squared gradient", minimum=0.0)
    adam_epsilon: float = option(1e-8, "added to Adam's denominator", minimum=0.0)
    weight_decay: float = option(
        0.0,
        "decoupled weight decay of the rows; 0 is right for almost everybody",
        minimum=0.0,
        aliases=("adam_weight_decay",),
    )
    preserve_embedding_norm: float = option(
        0.0,
        "part of the way to the usual norm of the words in the prompts that each row's norm is pulled after an update",
        minimum=0.0,
    )
    gradient_checkpointing: bool = option(
        False,
        "keep less for the backward pass and compute it anew: less memory, slower steps",
    )
    max_grad_norm: float = option(1.0, "global norm the rows' gradient is clipped to; 0 never clips", minimum=0.0)
    resume: str | None = option(
        None, "go on from a saved state: latest (the newest in --save_path, if any) or the path of one"
    )
    checkpointing_steps: int = option(50, "steps between states to resume from; the last step writes one", minimum=1)
    checkpoints_total_limit: int = option(2, "newest states that are kept", minimum=1)
    max_skipped_steps: int = option(
        25, "steps in a row without a finite loss and gradient after which the run stops", minimum=1
    )
    save_ckpt_interval: int = option(500, "steps between embedding files; the last step always writes one", minimum=1)
    num_validation_samples: int = option(
        0, "draws kept from training, on which the loss is measured; the best rows are then kept; 0 is none", minimum=0
    )
    validation_loss_interval: int = option(
        100, "steps between these measurements; the first and the last are made", minimum=1
    )
    log_interval: int = option(1, "steps between records in the JSON-lines log", minimum=1)
    tensorboard: bool = option(False, "also write curves, nearest words and previews for TensorBoard (tensorboardX)")
    infer_during_train: bool = option(False, "draw previews, as the sampling section says, at intervals and at the end")
    infer_interval: int = option(500, "steps between previews", minimum=1)
    infer_prompt: str | None = option(None, "prompt of the previews, {} is the new word; default: the first template")
    validation_prompts: list[str] = option(
        [], "more of them, or a text file with one a line; each may end in --n negative --d seed --w width --h height"
    )
    is_parallel: bool = option(False, "share the work between the processes that mpirun or msrun started")
    distributed_timeout: int = option(1800, "seconds that a process waits for the others before it gives up", minimum=1)


@dataclass(frozen=True)
class LossConfig:
    """What a step minimises."""

    loss_type: str = option(
        "l2", "squared error, or pseudo-Huber, which counts large errors less", choices=("l2", "huber")
    )
    huber_c: float = option(0.1, "error from which on pseudo-Huber grows along a line", minimum=1e-6)
    min_snr_gamma: float = option(
        0.0,
        "low noise levels count as much less as their signal-to-noise ratio exceeds this; 5 is usual, 0 is off",
        minimum=0.0,
        aliases=("snr_gamma",),
    )
    noise_offset: float = option(0.0, "spread of a brightness added to each channel of the noise", minimum=0.0)
    min_timestep: int = option(0, "lowest noise level shown, of 0 to 999", minimum=0)
    max_timestep: int | None = option(None, "highest noise level shown; default: the schedule's last", minimum=0)
    timestep_bias: float = option(
        0.0, "above 0 shows high noise levels more often, below 0 low ones; 0 shows all alike"
    )
    negative_guidance: float = option(
        3.0, "with a negative word among --concepts, how far what is learned leads away from it", minimum=1.0
    )


@dataclass(frozen=True)
class SamplingConfig:
    """Image generation."""

    task: str = option("txt2img", "what to generate images from", choices=("txt2img", "img2img", "inpaint"))
    textual_inversion_weight: list[str] = option([], "embedding files to use, any number")
    prompt: str = option("", "prompt, or a text file with a prompt a line")
    negative_prompt: str = option("", "negative prompt; empty zeroes the unconditional conditioning")
    prompt_weights: bool = option(
        True, "parse (word:1.3), [word], [a|b] and BREAK in prompts; False takes brackets literally"
    )
    sampler: str = option("euler", "sampler")
    schedule: str = option("legacy", "noise schedule of the sampler", aliases=("discretization",))
    sigma_min: float = option(0.03, "lowest noise level of the schedule edm", minimum=1e-4)
    sigma_max: float = option(14.61, "highest noise level of the schedule edm", minimum=1e-3)
    rho: float = option(3.0, "spacing of the schedule edm; higher puts more steps at low noise", minimum=0.1)
    eta: float = option(1.0, "share of noise that ancestral and SDE samplers add; 0 is none", minimum=0.0)
    s_noise: float = option(1.0, "scale of all noise that a sampler adds", minimum=0.0)
    s_churn: float = option(0.0, "noise that euler and heun add, over all steps; 0 is none", minimum=0.0)
    s_tmin: float = option(0.0, "lowest noise level at which s_churn adds noise", minimum=0.0)
    s_tmax: float = option(999.0, "highest noise level at which s_churn adds noise", minimum=0.0)
    guider: str = option("cfg", "how prompt and negative prompt are combined")
    guidance_rescale: float = option(
        0.7, "how far the guider rescaled restores the contrast of the prompt alone", minimum=0.0, maximum=1.0
    )
    sample_step: int = option(40, "sampler steps", minimum=1)
    guidance_scale: float = option(5.0, "guidance (CFG) scale; 1 is no guidance", minimum=0.0)
    seed: int = option(42, "seed of the first image; image k uses seed + k", minimum=0)
    num_cols: int = option(1, "images in a row of the grid", minimum=1)
    num_rows: int = option(1, "rows of the grid", minimum=1)
    batch_size: int = option(1, "images generated at once; changes memory and speed, not the images", minimum=1)
    save_path: str = option("outputs", "folder for the images")
    height: int | None = option(None, "image height in pixels; default: the model's resolution", minimum=8)
    width: int | None = option(None, "image width in pixels; default: the model's resolution", minimum=8)
    sd_xl_base_ratios: str | None = option(
        None, "one of SDXL's resolutions by its aspect ratio, width / height, such as 1.0 or 1.75"
    )
    orig_height: int | None = option(None, "original height in the size conditioning; default: height", minimum=1)
    orig_width: int | None = option(None, "original width in the size conditioning; default: width", minimum=1)
    target_height: int | None = option(None, "target height in the size conditioning; default: height", minimum=1)
    target_width: int | None = option(None, "target width in the size conditioning; default: width", minimum=1)
    crop_coords_top: int = option(0, "top of the crop in the size conditioning", minimum=0)
    crop_coords_left: int = option(0, "left of the crop in the size conditioning", minimum=0)
    init_latent_path: str | None = option(None, ".npy of standard-normal noise [N,4,H/8,W/8] to start from")
    init_latent_index: int = option(0, "index in that file of the first image's noise", minimum=0)
    base_model: str | None = option(
        None, "fingerprint of the weights that the generation parameters are of; warns if it differs"
    )
    img: list[str] = option([], "images, or folders of them, that img2img and inpaint start from")
    mask: str | None = option(None, "image that is white where to inpaint; black keeps the image")
    strength: float = option(
        0.75, "denoising strength of img2img and inpaint; 1 ignores the image", minimum=0.0, maximum=1.0
    )
    add_pipeline: bool = option(False, "use a refiner for the last steps")
    pipeline_config: str = option("configs/sampling/sd_xl_refiner.yaml", "YAML file of the refiner's model")
    pipeline_weight: str = option("checkpoints/sd_xl_refiner_1.0_ms.ckpt", "the refiner's weights")
    stage2strength: float = option(0.15, "share of the steps that the refiner takes", minimum=0.0, maximum=1.0)
    aesthetic_score: float = option(6.0, "aesthetic score in the refiner's conditioning")
    negative_aesthetic_score: float = option(2.5, "aesthetic score in the refiner's unconditional conditioning")
    vae_tiling: bool = option(False, "decode large images in overlapping tiles: less memory, faint seams")
    vae_tile_size: int = option(1024, "side of a tile in pixels", minimum=64, step=8)
    vae_slicing: bool = option(False, "decode the images of a batch one after the other: less memory")
    preview_interval: int = option(0, "steps between previews of unfinished images; 0 is none", minimum=0)


@dataclass(frozen=True)
class Config:
    """Everything. A YAML file has these sections."""

    model: ModelConfig = field(default_factory=ModelConfig)
    run: RunConfig = field(default_factory=RunConfig)
    concept: ConceptConfig = field(default_factory=ConceptConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def load(path: str | Path | None = None, overrides: dict[str, dict[str, Any]] | None = None) -> Config:
    """Return defaults < the YAML file at `path` < `overrides` (`{"training": {"total_step": 10}}`).

    Raises UserError as `schema.merge` does.
    """
    return schema.merge(Config, path, overrides or {})


def save(config: Config, path: str | Path) -> None:
    """Write `config` as YAML that `load` reads back to an equal Config."""
    Path(path).write_text(schema.to_yaml(dataclasses.asdict(config)), encoding="utf-8")


def check(config: Config) -> None:
    """Raise UserError if an option is outside its limits."""
    schema.check_limits(config)
