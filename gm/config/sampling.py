"""Options of image generation: sampling section of `Config`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gm.config.schema import MAX_SEED, Section, option


@dataclass(frozen=True)
class SamplingConfig(Section):
    """Image generation."""

    task: str = option(
        "txt2img", "text to image, image to image, or inpainting", choices=("txt2img", "img2img", "inpaint")
    )
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
    guider: str = option("cfg", "combination of prompt and negative prompt")
    guidance_rescale: float = option(
        0.7, "share of the contrast of the prompt alone that the guider rescaled restores", minimum=0.0, maximum=1.0
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
