"""Every option, once: its name, type, default, limits and one line of documentation.

The YAML files, the command-line flags and their help are all generated from these dataclasses. Values merge in the
order defaults < YAML < command line. Full-size SDXL 1.0 is the default model (numbers: `docs/architecture.md`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gm.config import schema
from gm.config.model import ModelConfig
from gm.config.schema import option
from gm.config.training import ConceptConfig, DataConfig, LossConfig, TrainingConfig
from gm.errors import UserError

POOLING_RULES = ("end_of_text", "argmax")


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
class SamplingConfig:
    """What to draw."""

    task: str = option("txt2img", "what to make images from", choices=("txt2img", "img2img", "inpaint"))
    textual_inversion_weight: list[str] = option([], "embedding files to use, any number")
    prompt: str = option("", "what to draw, or a text file with a prompt a line")
    negative_prompt: str = option("", "what to keep away from; empty zeroes the unconditional side")
    prompt_weights: bool = option(
        True, "read (word:1.3), [word], [a|b] and BREAK in prompts; False takes brackets for what they are"
    )
    sampler: str = option("euler", "how to walk from noise to image")
    schedule: str = option("legacy", "noise levels on that way", aliases=("discretization",))
    sigma_min: float = option(0.03, "lowest noise level of the schedule edm", minimum=1e-4)
    sigma_max: float = option(14.61, "highest noise level of the schedule edm", minimum=1e-3)
    rho: float = option(3.0, "how closely the schedule edm spaces low noise levels", minimum=0.1)
    eta: float = option(1.0, "part of the noise that ancestral and SDE samplers draw anew; 0 is none", minimum=0.0)
    s_noise: float = option(1.0, "strength of all noise that a sampler draws anew", minimum=0.0)
    s_churn: float = option(0.0, "noise that euler and heun draw anew, over all steps; 0 is none", minimum=0.0)
    s_tmin: float = option(0.0, "lowest noise level at which they do", minimum=0.0)
    s_tmax: float = option(999.0, "highest noise level at which they do", minimum=0.0)
    guider: str = option("cfg", "how prompt and negative prompt steer")
    guidance_rescale: float = option(
        0.7, "how far the guider rescaled brings contrast back to that of the prompt alone", minimum=0.0, maximum=1.0
    )
    sample_step: int = option(40, "steps of the sampler", minimum=1)
    guidance_scale: float = option(5.0, "strength of the prompt; 1 is no guidance", minimum=0.0)
    seed: int = option(42, "of the first image; image k uses seed + k", minimum=0)
    num_cols: int = option(1, "images in a row of the grid", minimum=1)
    num_rows: int = option(1, "rows of the grid", minimum=1)
    batch_size: int = option(1, "images drawn at once; changes memory and speed, not the images", minimum=1)
    save_path: str = option("outputs", "folder for the images")
    height: int | None = option(None, "of an image in pixels; default: the model's own", minimum=8)
    width: int | None = option(None, "of an image in pixels; default: the model's own", minimum=8)
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
    init_latent_index: int = option(0, "place in that file of the first image's noise", minimum=0)
    base_model: str | None = option(None, "weights that a recipe was made with; others are warned about")
    img: list[str] = option([], "images, or folders of them, that img2img and inpaint start from")
    mask: str | None = option(None, "image that is white where inpaint draws anew; black is kept as it is")
    strength: float = option(
        0.75, "part of the steps that img2img and inpaint walk; 1 forgets the image", minimum=0.0, maximum=1.0
    )
    add_pipeline: bool = option(False, "let a refiner draw the last steps")
    pipeline_config: str = option("configs/sampling/sd_xl_refiner.yaml", "YAML file of the refiner's model")
    pipeline_weight: str = option("checkpoints/sd_xl_refiner_1.0_ms.ckpt", "the refiner's weights")
    stage2strength: float = option(0.15, "part of the steps that the refiner draws", minimum=0.0, maximum=1.0)
    aesthetic_score: float = option(6.0, "how beautiful the refiner is told the image is")
    negative_aesthetic_score: float = option(2.5, "the same of what the refiner keeps away from")
    vae_tiling: bool = option(False, "decode large images in tiles that overlap: less memory, faint seams")
    vae_tile_size: int = option(1024, "side of such a tile in pixels", minimum=64, step=8)
    vae_slicing: bool = option(False, "decode one image of a batch after the other: less memory")
    preview_interval: int = option(0, "steps between looks at the unfinished images; 0 is none", minimum=0)


@dataclass(frozen=True)
class Config:
    """Everything. A YAML file has these sections."""

    model: ModelConfig = field(default_factory=ModelConfig)
    run: RunConfig = field(default_factory=RunConfig)
    concept: ConceptConfig = field(default_factory=ConceptConfig)
    concepts: list[ConceptConfig] = option(
        [],
        "several concepts: YAML mappings such as {placeholder_token: <a>, data_path: folder}, or a YAML file with a "
        "list of them; options left out are those of the flags",
    )
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def load(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Return defaults < the YAML file at `path` < `overrides` (`{"training": {"total_step": 10}}`).

    `concepts` is a list of mappings, on the command line of YAML mappings or files as text; see `with_concepts`.
    Raises UserError as `schema.merge` does.
    """
    sections = dict(overrides or {})
    concepts = sections.pop("concepts", None)
    config = schema.merge(Config, path, sections)
    if concepts is None and config.concepts:
        assert path is not None
        concepts = OmegaConf.to_container(OmegaConf.load(path).concepts)
    return with_concepts(config, concepts) if concepts else config


def with_concepts(config: Config, entries: Sequence[Any]) -> Config:
    """Return `config` with these concepts, the negative one last. A single entry becomes the `concept` section.

    `entries` are mappings of the options of `ConceptConfig`, or text as `schema.load_mappings` reads it. What an entry
    leaves out is taken from `config.concept`. Raises UserError for an entry that is not a mapping of options, two
    negative concepts, and a negative concept alone.
    """
    mappings: list[Any] = []
    for entry in entries:
        mappings += schema.load_mappings(entry) if isinstance(entry, str) else [entry]
    concepts = [_concept(config.concept, mapping, k) for k, mapping in enumerate(mappings, 1)]
    negative = [concept for concept in concepts if concept.negative]
    if len(negative) > 1:
        raise UserError("--concepts has two negative concepts; at most one is possible")
    if negative and len(negative) == len(concepts):
        raise UserError("--concepts has only a negative concept; add the concept that it is trained with")
    if len(concepts) == 1:
        return dataclasses.replace(config, concept=concepts[0], concepts=[])
    ordered = [concept for concept in concepts if not concept.negative] + negative
    return dataclasses.replace(config, concepts=ordered)


def _concept(defaults: ConceptConfig, mapping: Any, number: int) -> ConceptConfig:
    source = f"--concepts, concept {number}"
    if not isinstance(mapping, dict):
        raise UserError(f"{source} is {mapping!r}; write {{placeholder_token: <token>, data_path: folder}}")
    concept = schema.merge(ConceptConfig, None, {**dataclasses.asdict(defaults), **mapping}, source)
    if not concept.negative:
        return concept
    if mapping.get("data_path"):
        raise UserError(
            f"{source}: a negative concept is trained on the images of the other concepts; leave out its data_path"
        )
    return dataclasses.replace(concept, data_path="")


def save(config: Config, path: str | Path) -> None:
    """Write `config` as YAML that `load` reads back to an equal Config."""
    Path(path).write_text(schema.to_yaml(dataclasses.asdict(config)), encoding="utf-8")


def check(config: Config) -> None:
    """Raise UserError if an option is outside its limits."""
    schema.check_limits(config)
