"""A whole sampling run: images and a grid for each prompt, with their generation parameters, in `save_path`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gm.config import SamplingConfig
from gm.embeddings.embedding import LoadedEmbeddings
from gm.errors import UserError
from gm.lora import files as lora_files
from gm.models import stable_diffusion
from gm.sampling import image_files, init_image, metadata
from gm.sampling.pipeline import Pipeline, SamplingProgress, never
from gm.sampling.request import PromptGrid, SamplingJob

log = logging.getLogger("gm")

PREVIEW = "preview.png"  # the images in progress


def run_job(
    pipeline: Pipeline, job: SamplingJob, skip: Callable[[], bool] = never
) -> Iterator[SamplingProgress | Path]:
    """Generate the job's images, yielding progress, and the path of every file once it is written, grids last.

    `skip`, asked after each step, tells whether to leave the images in progress unfinished; a grid is of the others.
    Raises UserError if `save_path` is not writable.
    """
    sampling = job.config.sampling
    folder = Path(sampling.save_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--save_path {folder} is not writable: {error.strerror}; choose another folder") from error
    base_model = stable_diffusion.fingerprint(pipeline.model)
    _warn_about_weights(job, base_model)
    for grid in job.grids:
        parameters = metadata.generation_parameters(job.config, grid, base_model)
        infotexts = [
            metadata.a1111_infotext(each, request.resolution, job.concepts)
            for each, request in zip(parameters, grid.requests, strict=True)
        ]
        images: list[np.ndarray] = []
        skipped = 0
        for progress in generate_grid(pipeline, grid, job.embeddings, sampling, skip):
            yield progress
            skipped += progress.skipped
            if progress.previews:
                previews = image_files.make_grid(progress.previews, sampling.num_cols)
                image_files.write(previews, {}, folder / PREVIEW)
            for image in progress.images:
                index = len(images) + skipped
                yield image_files.save(image, parameters[index], folder, "image", infotexts[index])
                images.append(image)
        (folder / PREVIEW).unlink(missing_ok=True)
        if not images:
            continue
        pixels = image_files.make_grid(images, sampling.num_cols)
        yield image_files.save(pixels, parameters[0], folder, "grid", infotexts[0])


def generate_grid(
    pipeline: Pipeline,
    grid: PromptGrid,
    embeddings: LoadedEmbeddings,
    sampling: SamplingConfig,
    skip: Callable[[], bool] = never,
) -> Iterator[SamplingProgress]:
    """Generate a grid's images; with an initial image and a mask, the protected area keeps its pixels."""
    initial = grid.init_image
    if initial is None:
        yield from pipeline.generate(grid.requests, embeddings, sampling, skip)
        return
    (latents,) = init_image.encode(pipeline.model, [initial])
    mask = None
    if initial.mask is not None:
        mask = init_image.latent_mask(initial, pipeline.model.config.vae.downsample_factor)
    requests = [dataclasses.replace(request, init_latents=latents, mask=mask) for request in grid.requests]
    for progress in pipeline.generate(requests, embeddings, sampling, skip):
        if initial.mask is not None:
            images = tuple(init_image.paste(image, initial.pixels, initial.mask) for image in progress.images)
            progress = dataclasses.replace(progress, images=images)
        yield progress


def _warn_about_weights(job: SamplingJob, base_model: str) -> None:
    loaded = lora_files.read_records(job.config.run.lora_weight)
    for concept in job.concepts:
        if concept.metadata.get("base_model", base_model) != base_model:
            log.warning("%s was trained on other weights than these; it may look different", concept.placeholder_token)
        missing = lora_files.missing(lora_files.from_json(concept.metadata.get("loras")), loaded)
        if missing:
            log.warning(
                "%s was trained with the LoRA %s, which --lora_weight does not name; it may look different",
                concept.placeholder_token,
                lora_files.describe(missing),
            )
    if (job.config.sampling.base_model or base_model) != base_model:
        log.warning("the generation parameters are of other weights than these; the image will differ")
