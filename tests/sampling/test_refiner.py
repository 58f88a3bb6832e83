"""Sampling with a refiner: PyTorch's two networks one after the other, and which options change the image."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gm import config as configuration
from gm.checkpoints import loading
from gm.config import SamplingConfig
from gm.diffusion import schedule
from gm.embeddings.embedding import Embedding, combine
from gm.sampling import resolution
from gm.sampling.pipeline import Pipeline
from gm.text.tokenizer import END, pool_positions
from tests.project import Workshop
from tests.reference.inputs import Prompts, normal, relative_error
from tests.sampling.generation import WIDTHS, generate, image_request

TEXT = "a <cat> in the snow"


def cat(seed: int = 90) -> Embedding:
    return Embedding("<cat>", {name: normal(seed, 2, width) for name, width in WIDTHS.items()})


def options(workshop: Workshop, **more: Any) -> dict[str, Any]:
    refined = {
        "add_pipeline": True,
        "pipeline_config": str(workshop.folder / "refiner.yaml"),
        "pipeline_weight": str(workshop.folder / "refiner.ckpt"),
        "stage2strength": 0.5,
    }
    return {"sample_step": 4, **refined, **more}


def latents(pipeline: Pipeline, options: dict[str, Any], concept: Embedding | None = None, **fields: Any) -> np.ndarray:
    generated = generate(pipeline, (TEXT, 3), concepts=[concept or cat()], fields=[fields], **options)
    assert generated.progress[-1].done == generated.progress[-1].total
    return generated.latents


@pytest.mark.reference
@pytest.mark.parametrize("negative", ["", "<cat>, blurry"])
def test_base_model_and_refiner_are_pytorchs_networks_one_after_the_other(
    workshop: Workshop, pipeline: Pipeline, tmp_path: Path, negative: str
) -> None:
    import torch

    from tests.reference import networks
    from tests.reference.k_diffusion import sampling as k_diffusion
    from tests.reference.loops import torch_denoiser

    refined = options(workshop, negative_prompt=negative, height=16, width=24, orig_width=300, crop_coords_top=5)
    sampling = SamplingConfig(**refined)
    base = workshop.config().model
    embeddings = combine([cat()], base)
    size_conditioning = resolution.from_options(sampling, base).size_conditioning

    def prompts(text: str, sizes: tuple[float, ...]) -> Prompts:
        ids_1 = embeddings.tokenizer([text], padding=END)
        ids_2 = embeddings.tokenizer([text], padding=0)
        vectors = (embeddings.vectors["clip_l"], embeddings.vectors["clip_g"])
        return Prompts(ids_1, ids_2, pool_positions(ids_2, "end_of_text"), *vectors, np.array([sizes], np.float32))

    denoisers = []
    for config, name in ((base, "weights"), (configuration.load(sampling.pipeline_config).model, "refiner")):
        loading.convert(workshop.folder / f"{name}.ckpt", tmp_path / f"{name}.safetensors", config, "float32")
        reference = networks.load(config, tmp_path / f"{name}.safetensors", tmp_path)
        scores = (6.0, 2.5) if config.is_refiner else ()
        sizes = [(*size_conditioning[:4], score) for score in scores] or [size_conditioning] * 2
        unconditional = prompts(negative, sizes[1]) if negative or config.is_refiner else None
        denoisers.append(torch_denoiser(reference, prompts(TEXT, sizes[0]), unconditional, 5.0))
    sigmas = schedule.sampling_sigmas(base.schedule, sampling)
    noise = image_request(TEXT, 3, base, embeddings, sampling).initial_noise(base.vae)[None]
    x = torch.tensor(noise * (sigmas[0] ** 2 + 1) ** 0.5).float()
    for denoise, part in zip(denoisers, (sigmas[:3], sigmas[2:]), strict=True):
        x = k_diffusion.sample_euler(denoise, x, torch.tensor(part).float(), disable=True)
    assert relative_error(latents(pipeline, refined), x.numpy()) < 1e-4


def test_every_option_of_the_refiner_changes_the_image(workshop: Workshop, pipeline: Pipeline) -> None:
    base = latents(pipeline, options(workshop))
    other_clip_g = dataclasses.replace(cat(), vectors={**cat().vectors, "clip_g": cat(8).vectors["clip_g"]})
    start = {"init_latents": normal(1, 4, 8, 8)}
    others = {
        "none": latents(pipeline, options(workshop, add_pipeline=False)),
        "more": latents(pipeline, options(workshop, stage2strength=0.75)),
        "all": latents(pipeline, options(workshop, stage2strength=1.0)),
        "aesthetic score": latents(pipeline, options(workshop, aesthetic_score=2.0)),
        "negative aesthetic score": latents(pipeline, options(workshop, negative_aesthetic_score=9.0)),
        "embedding vectors of clip_g": latents(pipeline, options(workshop), other_clip_g),
        "from an image": latents(pipeline, options(workshop, task="img2img"), **start),
    }
    assert [name for name, each in others.items() if relative_error(each, base) < 1e-4] == []
    assert all(np.isfinite(each).all() for each in others.values())


def test_of_few_img2img_steps_the_refiner_takes_all(workshop: Workshop, pipeline: Pipeline) -> None:
    start = {"init_latents": normal(1, 4, 8, 8)}
    few, more = (
        latents(pipeline, options(workshop, task="img2img", strength=0.5, stage2strength=share), **start)
        for share in (0.5, 1.0)
    )
    assert np.array_equal(few, more)  # both of its two steps, either way


def test_a_refiner_is_loaded_once(workshop: Workshop, pipeline: Pipeline) -> None:
    latents(pipeline, options(workshop))
    (loaded,) = pipeline.refiners.values()
    latents(pipeline, options(workshop, stage2strength=0.25))
    assert list(pipeline.refiners.values()) == [loaded]
    assert not hasattr(loaded.model, "first_stage_model")
