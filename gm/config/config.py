"""All options: name, type, default, limits and one line of documentation.

YAML files, command-line flags and their help follow these dataclasses. Values are merged in the order defaults < YAML
file < command line. The default model is SDXL base 1.0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gm.config import schema, yaml_files
from gm.config.evaluation import EvaluationConfig
from gm.config.model import ModelConfig
from gm.config.schema import MAX_SEED, Section, option
from gm.config.training import ConceptConfig, DataConfig, LossConfig, TrainingConfig
from gm.errors import UserError

POOLING_RULES = ("end_of_text", "argmax")


@dataclass(frozen=True)
class RunConfig(Section):
    """Weights, device and mode."""

    device_target: str = option("", "device; default: Ascend if there is one, else CPU", choices=("", "Ascend", "CPU"))
    ms_mode: int = option(0, "0: graph mode (compiled, fast steps), 1: PyNative mode (starts at once)", choices=(0, 1))
    precision: str = option(
        "auto",
        "dtype of the frozen weights; auto is float16 on Ascend and float32 on CPU; bfloat16 on CPU needs AVX512-BF16 "
        "or AMX, a C++ compiler and the extra onednn, and is float32 without them",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    low_memory: str = option(
        "auto",
        "keep weights in float16 and cast them to float32 at each use: same results, less memory, slower steps; auto "
        "is some in PyNative mode on CPU, else off",
        choices=("auto", "off", "some", "most"),
    )
    flash_attention: str = option(
        "auto",
        "attention by one kernel, which keeps no scores; auto: on Ascend in half precision, where card and model allow "
        "it, on the CPU with the extra onednn; on: or refuse to start; off: by products and softmax",
        choices=("auto", "on", "off"),
    )
    jit_level: str = option(
        "O0",
        "how graphs run on Ascend: O0 kernel by kernel, O1 with fused operators, O2 as a whole by CANN's graph engine",
        choices=("O0", "O1", "O2"),
    )
    max_device_memory: str = option(
        "", "memory of the Ascend card that this process may use, such as 30GB; default: all that is free"
    )
    weight: str = option(
        "checkpoints/sd_xl_base_1.0_ms.ckpt",
        "weights of the model: .ckpt or .safetensors, a diffusers folder, or user/name of a model of the Hugging Face "
        "Hub",
        path="shipped",
    )
    revision: str | None = option(None, "branch, tag or commit of a model of the Hub; default: main")
    variant: str | None = option(None, "variant of the files of a model that is fetched from the Hub, such as fp16")
    cache_weights: bool = option(
        False, "convert a diffusers folder or a PyTorch file once, into the cache folder, and load the converted file"
    )
    vae: str = option(
        "",
        "VAE in place of that of the weights, such as sdxl_vae.safetensors or the fp16 fix: a file, or a diffusers "
        "folder",
        aliases=("pretrained_vae_model_name_or_path",),
        path="path",
    )
    unet: str = option(
        "", "UNet in place of that of the weights, such as a distilled one: a file, or a diffusers folder", path="path"
    )
    lora_weight: list[str] = option(
        [], "LoRA files to merge into the weights, any number, each FILE or FILE:strength", path="path"
    )
    pooling: str = option(
        "end_of_text",
        "token whose hidden state is SDXL's pooled text embedding; argmax is the rule of diffusers and mindone",
        choices=POOLING_RULES,
    )

    @property
    def networks(self) -> dict[str, str]:
        """The files of single networks, by the option that names them."""
        return {name: path for name, path in (("unet", self.unet), ("vae", self.vae)) if path}


@dataclass(frozen=True)
class SamplingConfig(Section):
    """Image generation."""

    task: str = option("txt2img", "what to generate images from", choices=("txt2img", "img2img", "inpaint"))
    textual_inversion_weight: list[str] = option(
        [], "embedding files to use, any number; file=<token> chooses another placeholder token", path="path"
    )
    prompt: str = option("", "prompt, or a text file with a prompt a line")
    negative_prompt: str = option(
        "", "negative prompt; empty is zeros for SDXL's base model, and the encoding of no text for others"
    )
    prompt_weights: bool = option(
        True, "parse (word:1.3), [word], [a|b] and BREAK in prompts; False takes brackets literally"
    )
    embedding_adjust: str | None = option(
        None,
        "alpha,rho: move embeddings towards their class word, in norm by alpha and in direction by rho (0.5,0.2 is "
        "usual); <token>{alpha,rho} in a prompt sets it for one",
    )
    embedding_class_word: list[str] = option(
        [], "class word for embedding_adjust where the embedding file has none, for all or each <token>=word"
    )
    sampler: str = option("euler", "sampler")
    schedule: str = option("legacy", "noise schedule of the sampler", aliases=("discretization",))
    sigma_min: float = option(0.03, "lowest noise level of the schedule edm", minimum=1e-4, maximum=1e4)
    sigma_max: float = option(14.61, "highest noise level of the schedule edm", minimum=1e-3, maximum=1e6)
    rho: float = option(
        3.0, "spacing of the schedule edm; higher puts more steps at low noise", minimum=0.1, maximum=1000.0
    )
    eta: float = option(
        1.0, "share of noise that ancestral and SDE samplers add; 0 is none", minimum=0.0, maximum=100.0
    )
    ddim_eta: float = option(
        0.0, "share of DDPM's noise that the sampler ddim adds; 0 is none", minimum=0.0, maximum=1.0
    )
    s_noise: float = option(1.0, "scale of all noise that a sampler adds", minimum=0.0, maximum=100.0)
    s_churn: float = option(0.0, "noise that euler and heun add, over all steps; 0 is none", minimum=0.0, maximum=1e6)
    s_tmin: float = option(0.0, "lowest noise level at which s_churn adds noise", minimum=0.0, maximum=1e6)
    s_tmax: float = option(999.0, "highest noise level at which s_churn adds noise", minimum=0.0, maximum=math.inf)
    guider: str = option("cfg", "how prompt and negative prompt are combined")
    guidance_rescale: float = option(
        0.7, "how far the guider rescaled restores the contrast of the prompt alone", minimum=0.0, maximum=1.0
    )
    sample_step: int = option(40, "sampler steps", minimum=1, maximum=10_000)
    guidance_scale: float = option(5.0, "guidance (CFG) scale; 1 is no guidance", minimum=0.0, maximum=1000.0)
    seed: int = option(42, "seed of the first image; image k uses seed + k", minimum=0, maximum=MAX_SEED)
    num_cols: int = option(1, "images in a row of the grid", minimum=1, maximum=1000)
    num_rows: int = option(1, "rows of the grid", minimum=1, maximum=1000)
    batch_size: int = option(
        1, "images generated at once; changes memory and speed, not the images", minimum=1, maximum=1024
    )
    save_path: str = option("outputs", "folder for the images", path="path")
    height: int | None = option(
        None, "image height in pixels; default: the model's resolution", minimum=8, maximum=16384
    )
    width: int | None = option(None, "image width in pixels; default: the model's resolution", minimum=8, maximum=16384)
    sd_xl_base_ratios: str | None = option(
        None, "one of SDXL's resolutions by its aspect ratio, width / height, such as 1.0 or 1.75"
    )
    orig_height: int | None = option(
        None, "original height in the size conditioning; default: height", minimum=1, maximum=100_000
    )
    orig_width: int | None = option(
        None, "original width in the size conditioning; default: width", minimum=1, maximum=100_000
    )
    target_height: int | None = option(
        None, "target height in the size conditioning; default: height", minimum=1, maximum=100_000
    )
    target_width: int | None = option(
        None, "target width in the size conditioning; default: width", minimum=1, maximum=100_000
    )
    crop_coords_top: int = option(0, "top of the crop in the size conditioning", minimum=0, maximum=100_000)
    crop_coords_left: int = option(0, "left of the crop in the size conditioning", minimum=0, maximum=100_000)
    init_latent_path: str | None = option(
        None, ".npy of standard-normal noise [N,4,H/8,W/8] to start from", path="path"
    )
    init_latent_index: int = option(0, "index in that file of the first image's noise", minimum=0, maximum=1_000_000)
    base_model: str | None = option(
        None, "fingerprint of the weights that the generation parameters are of; warns if it differs"
    )
    img: list[str] = option([], "images, or folders of them, that img2img and inpaint start from", path="path")
    mask: str | None = option(None, "image that is white where to inpaint; black keeps the image", path="path")
    strength: float = option(
        0.75, "denoising strength of img2img and inpaint; 1 ignores the image", minimum=0.0, maximum=1.0
    )
    add_pipeline: bool = option(False, "use a refiner for the last steps")
    pipeline_config: str = option(
        "configs/sampling/sd_xl_refiner.yaml", "YAML file of the refiner's model", path="shipped"
    )
    pipeline_weight: str = option("checkpoints/sd_xl_refiner_1.0_ms.ckpt", "the refiner's weights", path="shipped")
    stage2strength: float = option(0.15, "share of the steps that the refiner takes", minimum=0.0, maximum=1.0)
    aesthetic_score: float = option(6.0, "aesthetic score in the refiner's conditioning", minimum=-100.0, maximum=100.0)
    negative_aesthetic_score: float = option(
        2.5, "aesthetic score in the refiner's unconditional conditioning", minimum=-100.0, maximum=100.0
    )
    vae_tiling: bool = option(False, "decode large images in overlapping tiles: less memory, faint seams")
    vae_tile_size: int = option(1024, "side of a tile in pixels", minimum=64, step=8, maximum=16384)
    vae_slicing: bool = option(False, "decode the images of a batch one after the other: less memory")
    interactive: bool = option(
        False, "load the model once, then read prompts from the terminal, each with options of its own; ! is help"
    )
    preview_interval: int = option(
        0, "steps between previews of unfinished images; 0 is none", minimum=0, maximum=1_000_000
    )


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
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def load(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Return defaults < the YAML file at `path` < `overrides` (`{"training": {"total_step": 10}}`).

    `concepts` is a list of mappings, on the command line of YAML mappings or files as text; see `with_concepts`.
    Raises UserError for a missing file, for invalid YAML, and as `schema.merge` does.
    """
    layers = {}
    concepts: Any = None
    if path is not None:
        layers[str(path)] = schema.read_yaml(Config, path)
        concepts = layers[str(path)].pop("concepts", None)
    sections = dict(overrides or {})
    concepts = sections.pop("concepts", concepts)
    config = schema.merge(Config, {**layers, "command line": sections})
    if not config.model.has_class_embedding:
        # Only SDXL has a pooled text embedding: the rule of a translated command, say, is not that of a run.
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, pooling=POOLING_RULES[0]))
    if isinstance(concepts, str):
        concepts = [concepts]
    if concepts and not isinstance(concepts, Sequence):
        raise UserError(f"concepts is {concepts!r}; give a list of mappings of options")
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
    concept = schema.merge(ConceptConfig, {source: {**dataclasses.asdict(defaults), **mapping}}, f"{source}: ")
    if not concept.negative:
        return concept
    if mapping.get("data_path"):
        raise UserError(
            f"{source}: a negative concept is trained on the images of the other concepts; leave out its data_path"
        )
    return dataclasses.replace(concept, data_path="")


def save(config: Config, path: str | Path) -> None:
    """Write `config` as YAML that `load` reads back to an equal Config."""
    Path(path).write_text(yaml_files.dump(dataclasses.asdict(config)), encoding="utf-8")


def check(config: Config) -> None:
    """Raise UserError if an option is outside its limits."""
    schema.check_limits(config)
