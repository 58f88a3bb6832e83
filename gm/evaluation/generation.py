"""The images of an evaluation: one file for each embedding, prompt and seed, generated once.

Image k of prompt p (counted from 0 over both groups) has the seed `--seed` + 1000 p + k: another number of seeds or
more embeddings add images, and those that are there are used again. Embeddings are compared on the same noise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gm.config import Config
from gm.embeddings.embedding import Embedding, LoadedEmbeddings, safe_filename
from gm.errors import UserError
from gm.evaluation.job import EvaluationJob, Subject
from gm.models import stable_diffusion
from gm.sampling import adjusted_embeddings, embedding_use, image_files, metadata, request
from gm.sampling.pipeline import Pipeline, SamplingProgress
from gm.sampling.request import ImageRequest, PromptGrid

log = logging.getLogger("gm")

FOLDER = "images"
_SEEDS_OF_A_PROMPT = 1000
_WITHOUT_EFFECT = ("batch_size",)  # generation parameters that change no image
_BASE_MODEL = "base_model"  # known once the weights are loaded


@dataclass(frozen=True, eq=False)
class PlannedImage:
    """An image to generate, its file and its generation parameters without the fingerprint of the weights."""

    path: Path
    request: ImageRequest
    parameters: dict[str, Any]

    def is_there(self, base_model: str | None = None) -> bool:
        """Return whether the file exists; UserError if it was generated with other options, or other weights."""
        if not self.path.exists():
            return False
        stored = image_files.read_parameters(self.path)
        ignored = {*_WITHOUT_EFFECT, _BASE_MODEL}
        keys = (stored.keys() | self.parameters.keys()) - ignored
        changed = sorted(key for key in keys if stored.get(key) != self.parameters.get(key))
        if base_model is not None and stored.get(_BASE_MODEL) != base_model:
            changed.append(_BASE_MODEL)
        if changed:
            raise UserError(
                f"{self.path} was generated with other options ({', '.join(changed)}); give another --save_path, or "
                "remove it"
            )
        return True


@dataclass(frozen=True, eq=False)
class SubjectImages:
    """The images of an embedding, prompt by prompt, `num_seeds` of each, and the embeddings that they need."""

    subject: Subject
    config: Config
    embeddings: LoadedEmbeddings
    images: list[PlannedImage]


def plan(job: EvaluationJob) -> list[SubjectImages]:
    """Return the images of each embedding; UserError for prompts that cannot be parsed and for files of other options.

    Needs no weights.
    """
    planned = [_plan_subject(job, subject) for subject in job.subjects]
    done = sum(image.is_there() for each in planned for image in each.images)
    total = sum(len(each.images) for each in planned)
    if done:
        log.info("%d of %d images are in %s already", done, total, job.config.sampling.save_path)
    return planned


def generate(
    job: EvaluationJob, planned: list[SubjectImages], load_pipeline: Callable[[], Pipeline]
) -> Iterator[SamplingProgress | Path]:
    """Generate the images that are not there, yielding progress and the path of every file once it is written.

    The model is loaded only if an image is missing.
    """
    if all(image.is_there() for each in planned for image in each.images):
        return
    pipeline = load_pipeline()
    base_model = stable_diffusion.fingerprint(pipeline.model)
    for each in planned:
        missing = [image for image in each.images if not image.is_there(base_model)]
        written = 0
        requests = [image.request for image in missing]
        for progress in pipeline.generate(requests, each.embeddings, each.config.sampling) if requests else ():
            yield progress
            for pixels in progress.images:
                image = missing[written]
                image.path.parent.mkdir(parents=True, exist_ok=True)
                image_files.write(pixels, {**image.parameters, _BASE_MODEL: base_model}, image.path)
                written += 1
                yield image.path


def read(planned: SubjectImages) -> list[Image.Image]:
    """Return the images of an embedding in the order of `planned.images`."""
    images = []
    for each in planned.images:
        with Image.open(each.path) as file:
            images.append(file.convert("RGB"))
    return images


def _plan_subject(job: EvaluationJob, subject: Subject) -> SubjectImages:
    files = [subject.file, *dict.fromkeys(file for file, _ in job.helpers if file != subject.file)]
    sampling = dataclasses.replace(job.config.sampling, textual_inversion_weight=files)
    config = dataclasses.replace(job.config, sampling=sampling)
    concepts = [subject.embedding, *(embedding for _, embedding in job.helpers)]
    embeddings = adjusted_embeddings.load(concepts, [sampling], config.model)
    count = config.evaluation.num_seeds
    texts = [prompt.prompt for prompt in subject.prompts for _ in range(count)]
    requests = request.image_requests(texts, sampling, config.model, embeddings)
    _check_use(concepts, embeddings, requests, config)
    folder = Path(sampling.save_path) / FOLDER / _folder_name(subject.embedding)
    seeds = [sampling.seed + _SEEDS_OF_A_PROMPT * p + k for p in range(len(subject.prompts)) for k in range(count)]
    requests = [dataclasses.replace(each, seed=seed) for each, seed in zip(requests, seeds, strict=True)]
    parameters = metadata.generation_parameters(config, PromptGrid(requests), "")
    names = _file_names(subject, count)
    return SubjectImages(
        subject,
        config,
        embeddings,
        [
            PlannedImage(folder / name, each, json.loads(json.dumps(values)))
            for name, each, values in zip(names, requests, parameters, strict=True)
        ],
    )


def _check_use(
    concepts: list[Embedding], embeddings: LoadedEmbeddings, requests: list[ImageRequest], config: Config
) -> None:
    prompts = [prompt for each in requests for prompt in (each.prompt, each.negative_prompt)]
    schedules = {prompt.text: prompt.schedule for prompt in prompts}
    pooling = config.run.pooling if config.model.has_class_embedding else None
    embedding_use.check(concepts, embeddings.tokenizer, schedules, pooling, literal=True)


def _folder_name(embedding: Embedding) -> str:
    """Return the name of an embedding's folder: that of its file with a hash of the vectors, as many share a name."""
    digest = hashlib.sha256(b"".join(vectors.tobytes() for vectors in embedding.vectors.values())).hexdigest()[:8]
    name = safe_filename(embedding.name) or safe_filename(embedding.placeholder_token)
    return f"{name}_{digest}"


def _file_names(subject: Subject, count: int) -> list[str]:
    """Return `editability_03_1.png` and so on: group, prompt and image, the latter two counted from 1."""
    names = []
    numbers: dict[str, int] = {}
    for prompt in subject.prompts:
        numbers[prompt.group] = numbers.get(prompt.group, 0) + 1
        names += [f"{prompt.group}_{numbers[prompt.group]:02d}_{k + 1}.png" for k in range(count)]
    return names
