"""Generation parameters of an image: all options that repeat it, and the same as AUTOMATIC1111's infotext."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gm.config import Config, SamplingConfig
from gm.diffusion import samplers, schedule
from gm.embeddings import names
from gm.embeddings.embedding import Embedding
from gm.errors import UserError
from gm.lora import files as lora_files
from gm.sampling import image_files
from gm.sampling.request import PromptGrid
from gm.sampling.resolution import Resolution

log = logging.getLogger("gm")

FILES = "files"  # key of the hashes of all files that went into the image
LORAS = "loras"  # key of name, strength and hash of each LoRA
# Those of RunConfig that change an image; low_memory only with LoRAs, whose sums it rounds to float16.
_RUN_OPTIONS = ("weight", "vae", "unet", "lora_weight", "pooling", "precision", "low_memory", "ms_mode")
# Those of SamplingConfig that do not.
_UNUSED_OPTIONS = ("save_path", "num_cols", "num_rows", "interactive", "preview_interval")
# AUTOMATIC1111's names of the schedules, or of those next to them; it has none for edm.
_SCHEDULE_TITLES = {
    "legacy": "Uniform",
    "karras": "Karras",
    "edm": "EDM",
    "leading": "DDIM",
    "trailing": "SGM Uniform",
}


def generation_parameters(config: Config, grid: PromptGrid, base_model: str) -> list[dict[str, Any]]:
    """Return the options that repeat each image of `grid`, as JSON holds them.

    `base_model` is the fingerprint of the weights (`gm.models.stable_diffusion.fingerprint`).
    """
    run = dataclasses.asdict(config.run)
    sampling = dataclasses.asdict(config.sampling) | grid.overrides
    embedding_files = [str(names.split_token(path)[0]) for path in sampling["textual_inversion_weight"]]
    loras = lora_files.parse_all(run["lora_weight"])
    files = [
        *embedding_files,
        *(str(lora.path) for lora in loras),
        *sampling["img"],
        sampling["mask"],
        sampling["init_latent_path"],
    ]
    shared = {
        "model": dataclasses.asdict(config.model),
        **{name: run[name] for name in _RUN_OPTIONS if name != "pooling" or config.model.has_class_embedding},
        **{name: value for name, value in sampling.items() if name not in _UNUSED_OPTIONS},
        "base_model": base_model,
        LORAS: lora_files.as_json(lora_files.records(loras)),
        FILES: {name: _file_hash(name) for name in files if name},
    }
    parameters = []
    for number, request in enumerate(grid.requests):
        image: dict[str, Any] = {"prompt": request.prompt.text, "seed": request.seed}
        if sampling["init_latent_path"]:
            image["init_latent_index"] = sampling["init_latent_index"] + number
        parameters.append({**shared, **image})
    return parameters


def config_overrides(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return the options in the generation parameters of an image, by section of `Config`.

    Warns of a file that has changed since. Raises UserError for an image without generation parameters, and for a file
    that no longer exists.
    """
    parameters = image_files.read_parameters(path)
    for name, digest in parameters.get(FILES, {}).items():
        if not Path(name).exists():
            raise UserError(f"the generation parameters of {path} need {name}, which does not exist; restore it")
        if _file_hash(name) != digest:
            log.warning("%s has changed since %s was generated with it; the image will differ", name, path)
    known = {field.name for field in dataclasses.fields(SamplingConfig)} - set(_UNUSED_OPTIONS)
    sections = {
        "run": {name: parameters[name] for name in _RUN_OPTIONS if name in parameters},
        "sampling": {name: value for name, value in parameters.items() if name in known},
    }
    return sections | ({"model": parameters["model"]} if isinstance(parameters.get("model"), dict) else {})


def a1111_infotext(parameters: dict[str, Any], size: Resolution, concepts: Sequence[Embedding]) -> str:
    """Return the generation parameters as AUTOMATIC1111 writes them under the PNG key `parameters`."""
    # The prompt of AUTOMATIC1111 names the LoRAs and their strengths.
    loras = parameters.get(LORAS, [])
    tags = [f"<lora:{lora['name']}:{lora['strength']:g}>" for lora in loras]
    lines = [" ".join([parameters["prompt"], *tags])]
    if parameters["negative_prompt"]:
        lines.append(f"Negative prompt: {parameters['negative_prompt']}")
    fields: dict[str, Any] = {
        "Steps": parameters["sample_step"],
        "Sampler": samplers.TITLES[samplers.resolve_name(parameters["sampler"])],
        "Schedule type": _SCHEDULE_TITLES[schedule.resolve_name(parameters["schedule"])],
        "CFG scale": parameters["guidance_scale"],
        "Seed": parameters["seed"],
        "Size": f"{size.width}x{size.height}",
        "Model": Path(parameters["weight"]).stem,
    }
    clip_skip = parameters["model"].get("text_encoder_1", {}).get("clip_skip", 1)
    if clip_skip > 1:
        fields["Clip skip"] = clip_skip
    if parameters["model"]["schedule"]["rescale_betas_zero_snr"]:
        fields["Noise Schedule"] = "Zero Terminal SNR"
    for name, title in (("vae", "VAE"), ("unet", "UNet")):
        if parameters.get(name):
            fields[title] = Path(parameters[name]).name
    if parameters["task"] != "txt2img":
        fields["Denoising strength"] = parameters["strength"]
    if parameters["add_pipeline"]:
        fields["Refiner"] = Path(parameters["pipeline_weight"]).stem
        fields["Refiner switch at"] = 1 - parameters["stage2strength"]
    if loras:
        fields["Lora hashes"] = ", ".join(f"{lora['name']}: {lora['hash']}" for lora in loras)
    if concepts:
        hashes = (f"{concept.placeholder_token}: {_vectors_hash(concept)}" for concept in concepts)
        fields["TI hashes"] = ", ".join(hashes)
    if concepts and parameters.get("embedding_adjust"):
        fields["Embedding adjust"] = parameters["embedding_adjust"]
    fields["Version"] = "Textual inversion on MindSpore"
    return "\n".join([*lines, ", ".join(f"{name}: {_quote(value)}" for name, value in fields.items())])


def _quote(value: Any) -> str:
    """Return `value` as text, in quotes if it holds a comma, a colon or a line break, which separate fields."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(separator in text for separator in ",:\n") else text


def _file_hash(path: str) -> str:
    """Return a hash of a file, or of all files in a folder."""
    files = sorted(p for p in Path(path).rglob("*") if p.is_file()) if Path(path).is_dir() else [Path(path)]
    return hashlib.sha256(b"".join(hashlib.sha256(p.read_bytes()).digest() for p in files)).hexdigest()[:16]


def _vectors_hash(concept: Embedding) -> str:
    return hashlib.sha256(b"".join(vectors.tobytes() for vectors in concept.vectors.values())).hexdigest()[:12]
