"""Requests for images, and the checked options of a whole sampling run, both without the model's weights."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gm import config as configuration
from gm.config import Config, SamplingConfig, family_options
from gm.config.model import ModelConfig
from gm.config.networks import VAEConfig
from gm.data.image import CroppedImage
from gm.diffusion import guidance, samplers, schedule
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding, LoadedEmbeddings
from gm.errors import UserError
from gm.lora import files as lora_files
from gm.runtime import atomic_io, rng
from gm.sampling import (
    adjusted_embeddings,
    embedding_use,
    init_image,
    option_checks,
    prompt_file,
    resolution,
    vae_decode,
)
from gm.sampling.resolution import Resolution
from gm.text import prompt_parser
from gm.text.prompt_parser import PromptSchedule

log = logging.getLogger("gm")

_MAX_IMAGES = 10_000  # of a prompt, which all are in the memory for its grid


@dataclass(frozen=True)
class Prompt:
    """A prompt as the user wrote it, and the token chunks that each step of the sampler reads of it."""

    text: str
    schedule: PromptSchedule


@dataclass(frozen=True, eq=False)
class ImageRequest:
    """One image to generate.

    steps: of the whole schedule, of which an image with `init_latents` takes the last share `strength`
    noise: [z, h, w], standard normal, instead of the seed's initial noise
    init_latents: [z, h, w], scaled latents that img2img and inpainting start from
    mask: [h, w], 1 where inpainting generates and 0 where the initial latents stay
    """

    prompt: Prompt
    negative_prompt: Prompt
    seed: int
    resolution: Resolution
    steps: int
    guidance_scale: float
    strength: float = 1.0
    noise: np.ndarray | None = None
    init_latents: np.ndarray | None = None
    mask: np.ndarray | None = None

    @property
    def first_step(self) -> int:
        """Step of the schedule that sampling starts at, counted from 0."""
        return 0 if self.init_latents is None else self.steps - schedule.step_count(self.strength, self.steps)

    def initial_noise(self, vae: VAEConfig) -> np.ndarray:
        """Return the standard-normal noise [z, h, w] that sampling starts from."""
        if self.noise is not None:
            return self.noise
        return rng.normal(self._latent_shape(vae), self.seed, rng.INITIAL_NOISE)

    def step_noise(self, vae: VAEConfig, step: int) -> np.ndarray:
        """Return the standard-normal noise [z, h, w] that a stochastic sampler may add in `step`."""
        return rng.normal(self._latent_shape(vae), self.seed, "fresh", step)

    def _latent_shape(self, vae: VAEConfig) -> tuple[int, int, int]:
        return (
            vae.latent_channels,
            self.resolution.height // vae.downsample_factor,
            self.resolution.width // vae.downsample_factor,
        )


@dataclass(frozen=True)
class PromptGrid:
    """The requests of one prompt, and of one image to start from if there is any; their images make a grid.

    overrides: options of SamplingConfig that differ from the run's, by the prompt's line or the initial image
    """

    requests: list[ImageRequest]
    overrides: dict[str, Any] = field(default_factory=dict)
    init_image: CroppedImage | None = None


@dataclass(frozen=True)
class SamplingJob:
    """Checked options: the grids to generate, and the embeddings that their prompts may use."""

    config: Config
    grids: list[PromptGrid]
    concepts: list[Embedding]
    embeddings: LoadedEmbeddings


def prepare(config: Config, literal: bool = False) -> SamplingJob:
    """Return the job of the options, checked before the weights are read; UserError names the first mistake.

    A `literal` prompt is not taken for the name of a prompt file.
    """
    sampling = config.sampling
    count = sampling.num_rows * sampling.num_cols
    if count > _MAX_IMAGES:
        raise UserError(f"--num_rows × --num_cols are {count} images of a prompt; it must be at most {_MAX_IMAGES}")
    atomic_io.check_writable(sampling.save_path, "--save_path")
    lora_files.parse_all(config.run.lora_weight)
    for message in option_checks.ineffective_options(config):
        log.warning("%s", message)
    paths, family = sampling.textual_inversion_weight, config.model.family
    concepts = [concept for path in paths for concept in embedding_io.load_all(path, family)]
    lines = prompt_file.read(sampling.prompt, "--prompt", literal)
    is_file = lines != [sampling.prompt]
    overrides = [prompt_file.parse(line) if is_file else {} for line in lines]
    options = [dataclasses.replace(sampling, **line) for line in overrides]
    for line_options in options:
        check(config.model, line_options)
    embeddings = adjusted_embeddings.load(concepts, options, config.model)
    requests = [image_requests([line.prompt] * count, line, config.model, embeddings) for line in options]
    prompts = [prompt for line in requests for prompt in (line[0].prompt, line[0].negative_prompt)]
    schedules = {prompt.text: prompt.schedule for prompt in prompts}
    pooling = config.run.pooling if config.model.has_class_embedding else None
    embedding_use.check(concepts, embeddings.tokenizer, schedules, pooling, literal)
    grids = [
        grid
        for line_options, line_requests, line_overrides in zip(options, requests, overrides, strict=True)
        for grid in prompt_grids(line_requests, line_options, config.model, line_overrides)
    ]
    return SamplingJob(config, [_with_noise(grid, config) for grid in grids], concepts, embeddings)


def check(model: ModelConfig, sampling: SamplingConfig) -> None:
    """Raise UserError for options that no weights could make possible."""
    samplers.resolve_name(sampling.sampler)
    guidance.resolve_name(sampling.guider)
    schedule.sampling_sigmas(model.schedule, sampling)
    vae_decode.latent_tile_size(sampling, model.vae)
    model.require("base")
    family_options.check_sampling(model, sampling)
    if sampling.add_pipeline:
        check_refiner(model, sampling)
    if sampling.task != "txt2img" and schedule.step_count(sampling.strength, sampling.sample_step) < 1:
        raise UserError(
            f"--strength {sampling.strength} of {sampling.sample_step} steps is none; "
            f"it must be at least {1 / sampling.sample_step:.2g}"
        )


def check_refiner(base: ModelConfig, sampling: SamplingConfig) -> ModelConfig:
    """Return the refiner's config; UserError if it is not a refiner, does not fit the base model, or has no weights."""
    refiner = configuration.load(sampling.pipeline_config).model
    refiner.require("refiner")
    if refiner.vae != base.vae or refiner.schedule != base.schedule:
        raise UserError(
            f"--pipeline_config {sampling.pipeline_config}: {refiner.version} has other latents or noise levels than "
            f"{base.version}; give the refiner made for it"
        )
    for name, encoder in refiner.text_encoders.items():
        if encoder.width != base.text_encoders[name].width:
            raise UserError(
                f"--pipeline_config {sampling.pipeline_config}: {name} of {refiner.version} is {encoder.width} wide, "
                f"that of {base.version} {base.text_encoders[name].width}; give the refiner made for it"
            )
    if schedule.step_count(sampling.stage2strength, sampling.sample_step) < 1:
        raise UserError(
            f"--stage2strength {sampling.stage2strength} of {sampling.sample_step} steps leaves the refiner none; "
            f"it must be at least {1 / sampling.sample_step:.2g}, or leave out --add_pipeline"
        )
    if not Path(sampling.pipeline_weight).exists():
        raise UserError(
            f"--pipeline_weight {sampling.pipeline_weight} does not exist; it names the refiner's weights, which "
            "tools/convert_weights/convert.py converts"
        )
    return refiner


def image_requests(
    prompts: Sequence[str], sampling: SamplingConfig, model: ModelConfig, embeddings: LoadedEmbeddings
) -> list[ImageRequest]:
    """Return one request a prompt, with seeds from `sampling.seed` up; each different prompt is parsed once.

    Raises UserError for a prompt that cannot be parsed and for a resolution that does not fit the model.
    """
    parsed = {
        text: Prompt(
            text, prompt_parser.parse(text, embeddings.tokenizer, sampling.sample_step, sampling.prompt_weights)
        )
        for text in dict.fromkeys([*prompts, sampling.negative_prompt])
    }
    size = resolution.from_options(sampling, model)
    return [
        ImageRequest(
            prompt=parsed[text],
            negative_prompt=parsed[sampling.negative_prompt],
            seed=sampling.seed + number,
            resolution=size,
            steps=sampling.sample_step,
            guidance_scale=sampling.guidance_scale,
            strength=sampling.strength,
        )
        for number, text in enumerate(prompts)
    ]


def prompt_grids(
    requests: list[ImageRequest],
    sampling: SamplingConfig,
    model: ModelConfig,
    overrides: dict[str, Any] | None = None,
) -> list[PromptGrid]:
    """Return a grid of the requests for each image that they start from, or one grid if they start from noise.

    Raises UserError for an initial image or mask that cannot be used.
    """
    overrides = overrides or {}
    if sampling.task == "txt2img":
        init_image.check_task(sampling)
        return [PromptGrid(requests, overrides)]
    grids = []
    for image in init_image.load_all(sampling, model):
        size = resolution.from_options(dataclasses.replace(sampling, **image.options), model)
        resized = [dataclasses.replace(request, resolution=size) for request in requests]
        grids.append(PromptGrid(resized, {**overrides, **image.options}, image.cropped))
    return grids


def _with_noise(grid: PromptGrid, config: Config) -> PromptGrid:
    """Return the grid with the initial noises that `--init_latent_path` gives its images, if it is given."""
    if config.sampling.init_latent_path is None:
        return grid
    noises = init_image.load_noise(config.sampling, config.model.vae, grid.requests[0].resolution, len(grid.requests))
    requests = [dataclasses.replace(request, noise=noise) for request, noise in zip(grid.requests, noises, strict=True)]
    return dataclasses.replace(grid, requests=requests)
