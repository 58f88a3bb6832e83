"""A whole sampling run: from options to pictures, a grid and their recipes in `save_path`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gm import atomic, sdxl
from gm.concepts import files as concept_files
from gm.concepts.concept import Concept, Words, words
from gm.config import Config
from gm.diffusion import samplers
from gm.errors import UserError
from gm.generation import files, lines, sizes
from gm.generation.text_to_image import Drawn, Order, Painter
from gm.sdxl import SDXL

log = logging.getLogger("gm")


@dataclass(frozen=True)
class Job:
    """Checked options: each prompt's orders, and the words they may use."""

    config: Config
    orders: list[list[Order]]
    concepts: list[Concept]
    words: Words


def make(config: Config) -> Job:
    """Check everything that can be wrong before the weights are read; UserError names the first thing that is."""
    sampling = config.sampling
    atomic.check_folder(sampling.save_path, "--save_path")
    samplers.by_name(sampling.sampler)
    frame = sizes.frame(sampling, config.model)
    concepts = [c for path in sampling.textual_inversion_weight for c in concept_files.load_all(path)]
    known = words(concepts, config.model)
    prompts = lines.read(sampling.prompt, "--prompt")
    texts = [*prompts, sampling.negative_prompt]
    known.tokenizer(texts, padding=0)  # finds a concept that would be cut off
    used = {number for text in texts for number in known.tokenizer.encode(text)}
    for concept in concepts:
        if not used & set(known.tokenizer.placeholders[concept.placeholder]):
            log.warning("no prompt uses %s", concept.placeholder)
        if concept.pooling != config.run.pooling:
            log.warning(
                "%s was learned with pooling %s, but %s is used; --pooling %s matches it",
                *(concept.placeholder, concept.pooling, config.run.pooling, concept.pooling),
            )
    count = sampling.num_rows * sampling.num_cols
    noise = _noise(sampling.init_latent_path, count, config, frame)
    orders = [[Order(text, sampling.seed + k, noise[k]) for k in range(count)] for text in prompts]
    return Job(config, orders, concepts, known)


def run(model: SDXL, painter: Painter, job: Job) -> Iterator[Drawn | Path]:
    """Draw the job: yields progress, and the path of every file as soon as it is written; a prompt's grid comes last.

    UserError if `save_path` cannot be written to.
    """
    sampling = job.config.sampling
    folder = Path(sampling.save_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --save_path {folder}: {error.strerror}; choose another folder") from error
    base_model = sdxl.fingerprint(model)
    for concept in job.concepts:
        if concept.details.get("base_model", base_model) != base_model:
            log.warning("%s was learned on other weights than these; it may look different", concept.placeholder)
    for orders in job.orders:
        pictures: list[np.ndarray] = []
        for drawn in painter.draw(orders, job.words, sampling):
            yield drawn
            for picture in drawn.pictures:
                order = orders[len(pictures)]
                yield files.save(picture, _recipe(job, order, base_model), folder, "picture")
                pictures.append(picture)
        sheet = files.grid(pictures, sampling.num_cols)
        yield files.save(sheet, _recipe(job, orders[0], base_model), folder, "grid")


def _recipe(job: Job, order: Order, base_model: str) -> dict[str, object]:
    """Return everything that makes the picture again; `seed` and `prompt` are the picture's own."""
    run, sampling = dataclasses.asdict(job.config.run), dataclasses.asdict(job.config.sampling)
    own = {"prompt": order.prompt, "seed": order.seed, "base_model": base_model}
    return {"model": job.config.model.version, **run, **sampling, **own}


def _noise(path: str | None, count: int, config: Config, frame: sizes.Frame) -> Sequence[np.ndarray | None]:
    """Return the first `count` noises of the file, or Nones where seeds are to be used."""
    if path is None:
        return [None] * count
    try:
        noise = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"no file {path}; --init_latent_path names a .npy of noise") from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--init_latent_path {path} is no .npy of numbers; numpy.save writes one") from error
    autoencoder = config.model.autoencoder
    side = (frame.height // autoencoder.reduction, frame.width // autoencoder.reduction)
    wanted = (autoencoder.latent_channels, *side)
    if (
        noise.ndim != 4
        or noise.shape[1:] != wanted
        or len(noise) < count
        or not np.issubdtype(noise.dtype, np.floating)
    ):
        raise UserError(
            f"--init_latent_path {path} holds {noise.dtype} {list(noise.shape)}; "
            f"{count} pictures of {frame.width}×{frame.height} need floats [{count}, {', '.join(map(str, wanted))}]"
        )
    return list(noise[:count].astype(np.float32))
