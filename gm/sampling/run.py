"""A whole sampling run: images, a grid of each prompt, and their recipes in `save_path`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gm.embeddings.embedding import LoadedEmbeddings
from gm.errors import UserError
from gm.models import sdxl
from gm.models.sdxl import SDXL
from gm.sampling import image_files, init_image, metadata, resolution
from gm.sampling.image_request import SamplingProgress
from gm.sampling.pipeline import Pipeline
from gm.sampling.request import PromptGrid, SamplingJob

log = logging.getLogger("gm")

PREVIEW = "preview.png"  # what is being drawn, as it looks so far


def run(model: SDXL, pipeline: Pipeline, job: SamplingJob) -> Iterator[SamplingProgress | Path]:
    """Draw the job: yields progress, and the path of every file as soon as it is written; a sheet's grid comes last.

    UserError if `save_path` cannot be written to.
    """
    folder = Path(job.config.sampling.save_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --save_path {folder}: {error.strerror}; choose another folder") from error
    base_model = sdxl.fingerprint(model)
    _warn_of_weights(job, base_model)
    for sheet in job.sheets:
        frame = resolution.image_size(sheet.sampling, model.config)
        recipe = metadata.generation_parameters(job.config, sheet.sampling, sheet.requests, base_model)
        texts = [metadata.a1111_infotext(one, frame, job.concepts) for one in recipe]
        images: list[np.ndarray] = []
        for drawn in draw(model, pipeline, sheet, job.words):
            yield drawn
            if drawn.previews:
                image_files.write(image_files.make_grid(drawn.previews, sheet.sampling.num_cols), {}, folder / PREVIEW)
            for image in drawn.images:
                number = len(images)
                yield image_files.save(image, recipe[number], folder, "image", texts[number])
                images.append(image)
        (folder / PREVIEW).unlink(missing_ok=True)
        yield image_files.save(
            image_files.make_grid(images, sheet.sampling.num_cols), recipe[0], folder, "grid", texts[0]
        )


def draw(model: SDXL, pipeline: Pipeline, sheet: PromptGrid, words: LoadedEmbeddings) -> Iterator[SamplingProgress]:
    """Draw a sheet; where it starts from an image and a mask, what the mask protects is that image's own pixels."""
    source = sheet.source
    if source is None:
        yield from pipeline.draw(sheet.requests, words, sheet.sampling)
        return
    (start,) = init_image.encode(model, [source])
    mask = None if source.mask is None else init_image.latent_mask(source, model.config.vae.reduction)
    requests = [dataclasses.replace(order, image=start, mask=mask) for order in sheet.requests]
    for drawn in pipeline.draw(requests, words, sheet.sampling):
        if source.mask is not None:
            pasted = tuple(init_image.paste(image, source.pixels, source.mask) for image in drawn.images)
            drawn = dataclasses.replace(drawn, images=pasted)
        yield drawn


def _warn_of_weights(job: SamplingJob, base_model: str) -> None:
    for concept in job.concepts:
        if concept.metadata.get("base_model", base_model) != base_model:
            log.warning("%s was learned on other weights than these; it may look different", concept.placeholder_token)
    if (job.config.sampling.base_model or base_model) != base_model:
        log.warning("the recipe was made with other weights than these; the image will differ")
