"""How an image was made: everything that makes it again, and the same in the words of AUTOMATIC1111."""

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
from gm.embeddings.embedding import Embedding
from gm.errors import UserError
from gm.sampling import image_files, resolution
from gm.sampling.image_request import ImageRequest

log = logging.getLogger("gm")

FILES = "files"  # key of the recipe with a hash of every file that went into the image
_RUN = ("weight", "pooling", "precision", "ms_mode")  # of the options of a run, those that change an image
_NOT = ("save_path", "num_cols", "num_rows", "preview_interval")  # of those of sampling, those that change none
# The names of schedules in AUTOMATIC1111, which has none of its own for edm.
_TITLES = {"legacy": "Uniform", "karras": "Karras", "edm": "EDM"}


def generation_parameters(
    config: Config, sampling: SamplingConfig, requests: Sequence[ImageRequest], base_model: str
) -> list[dict[str, Any]]:
    """Return what makes each image of a sheet again, as JSON holds it.

    `sampling` are the options of the sheet, `requests` hold each image's own prompt and seed.
    """
    run, options = dataclasses.asdict(config.run), dataclasses.asdict(sampling)
    named = [*sampling.textual_inversion_weight, *sampling.img, sampling.mask, sampling.init_latent_path]
    shared = {
        "model": dataclasses.asdict(config.model),
        **{name: run[name] for name in _RUN},
        **{name: value for name, value in options.items() if name not in _NOT},
        "base_model": base_model,
        FILES: {name: _hash(name) for name in named if name},
    }
    made = []
    for number, order in enumerate(requests):
        own: dict[str, Any] = {"prompt": order.prompt, "seed": order.seed}
        if sampling.init_latent_path:
            own["init_latent_index"] = sampling.init_latent_index + number
        made.append({**shared, **own})
    return made


def overrides(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return the options of an image's recipe by section of `Config`; warns of files that are not what they were.

    Raises UserError for an image without a recipe.
    """
    recipe = image_files.read_parameters(path)
    for name, digest in recipe.get(FILES, {}).items():
        if not Path(name).exists():
            raise UserError(f"the recipe of {path} needs {name}, which is not there; put it back")
        if _hash(name) != digest:
            log.warning("%s is not the file that %s was made with; the image will differ", name, path)
    known = {field.name for field in dataclasses.fields(SamplingConfig)} - set(_NOT)
    sections = {
        "run": {name: recipe[name] for name in _RUN if name in recipe},
        "sampling": {name: value for name, value in recipe.items() if name in known},
    }
    return sections | ({"model": recipe["model"]} if isinstance(recipe.get("model"), dict) else {})


def a1111_infotext(recipe: dict[str, Any], frame: resolution.ImageSize, concepts: Sequence[Embedding]) -> str:
    """Return the recipe as AUTOMATIC1111 writes it under the key `parameters`, for the programs that read that."""
    lines = [recipe["prompt"]]
    if recipe["negative_prompt"]:
        lines.append(f"Negative prompt: {recipe['negative_prompt']}")
    told: dict[str, Any] = {
        "Steps": recipe["sample_step"],
        "Sampler": samplers.TITLES[samplers.resolve_name(recipe["sampler"])],
        "Schedule type": _TITLES[schedule.resolve_name(recipe["schedule"])],
        "CFG scale": recipe["guidance_scale"],
        "Seed": recipe["seed"],
        "Size": f"{frame.width}x{frame.height}",
        "Model": Path(recipe["weight"]).stem,
    }
    if recipe["task"] != "txt2img":
        told["Denoising strength"] = recipe["strength"]
    if recipe["add_pipeline"]:
        told |= {"Refiner": Path(recipe["pipeline_weight"]).stem, "Refiner switch at": 1 - recipe["stage2strength"]}
    if concepts:
        told["TI hashes"] = ", ".join(f"{concept.placeholder_token}: {_rows_hash(concept)}" for concept in concepts)
    told["Version"] = "SDXL textual inversion on MindSpore"
    return "\n".join([*lines, ", ".join(f"{name}: {_quoted(value)}" for name, value in told.items())])


def _quoted(value: Any) -> str:
    """Return `value` as text, in quotes where a comma, a colon or a new line in it would be taken for a separator."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ",:\n") else text


def _hash(path: str) -> str:
    """Return a hash of a file, or of all files in a folder."""
    found = sorted(p for p in Path(path).rglob("*") if p.is_file()) if Path(path).is_dir() else [Path(path)]
    return hashlib.sha256(b"".join(hashlib.sha256(p.read_bytes()).digest() for p in found)).hexdigest()[:16]


def _rows_hash(concept: Embedding) -> str:
    return hashlib.sha256(concept.vectors["clip_l"].tobytes() + concept.vectors["clip_g"].tobytes()).hexdigest()[:12]
