"""Drawing with a refiner: PyTorch's two networks one after the other, and what a run makes of the options."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import torch

from gm import config as configuration
from gm.checkpoints import loading
from gm.config import SamplingConfig
from gm.diffusion import schedule
from gm.embeddings.embedding import Embedding, combine
from gm.runtime.backend import Backend
from gm.sampling import image_request, resolution
from gm.sampling.image_request import ImageRequest
from gm.sampling.pipeline import Pipeline
from gm.text.tokenizer import END, pool_positions
from tests.project import Workshop
from tests.reference.inputs import Prompts, normal, relative_error

TEXT = "a <cat> in the snow"


@pytest.fixture(scope="module")
def pipeline(workshop: Workshop) -> Pipeline:
    return Pipeline(workshop.model, Backend("CPU", graph=False, dtype=ms.float32), "end_of_text")


def cat(seed: int = 90) -> Embedding:
    return Embedding(
        "<cat>", dict(zip(("clip_l", "clip_g"), (normal(seed, 2, width) for width in (16, 24)), strict=True))
    )


def options(workshop: Workshop, **more: Any) -> SamplingConfig:
    refined = {
        "add_pipeline": True,
        "pipeline_config": str(workshop.folder / "refiner.yaml"),
        "pipeline_weight": str(workshop.folder / "refiner.ckpt"),
        "stage2strength": 0.5,
    }
    return SamplingConfig(**{"sample_step": 4, **refined, **more})


def draw(pipeline: Pipeline, sampling: SamplingConfig, concept: Embedding | None = None, **order: Any) -> np.ndarray:
    known = combine([concept or cat()], pipeline.model.config)
    *_, last = pipeline.draw([ImageRequest(TEXT, 3, **order)], known, sampling)
    assert last.done == last.total
    assert last.latents is not None
    return last.latents


@pytest.mark.parametrize("negative", ["", "<cat>, blurry"])
def test_two_networks_one_after_the_other(
    workshop: Workshop, pipeline: Pipeline, tmp_path: Path, negative: str
) -> None:
    from tests.reference import networks
    from tests.reference.k_diffusion import sampling as k_diffusion
    from tests.reference.loops import torch_denoiser

    sampling = options(workshop, negative_prompt=negative, height=16, width=24, orig_width=300, crop_coords_top=5)
    base = workshop.config().model
    known, frame = combine([cat()], base), resolution.image_size(sampling, base)

    def prompts(text: str, told: tuple[float, ...]) -> Prompts:
        ids_1, ids_2 = known.tokenizer([text], padding=END), known.tokenizer([text], padding=0)
        rows = (known.vectors["clip_l"], known.vectors["clip_g"])
        return Prompts(ids_1, ids_2, pool_positions(ids_2, "end_of_text"), *rows, np.array([told], np.float32))

    denoisers = []
    for config, name in ((base, "weights"), (configuration.load(sampling.pipeline_config).model, "refiner")):
        loading.convert(workshop.folder / f"{name}.ckpt", tmp_path / f"{name}.safetensors", config, "float32")
        reference = networks.load(config, tmp_path / f"{name}.safetensors", tmp_path)
        scores = (6.0, 2.5) if config.is_refiner else ()
        told = [(*frame.told[:4], score) for score in scores] or [frame.told] * 2
        without = prompts(negative, told[1]) if negative or config.is_refiner else None
        denoisers.append(torch_denoiser(reference, prompts(TEXT, told[0]), without, 5.0))
    sigmas = schedule.sampling_sigmas(base.schedule, sampling)
    noise = image_request.noise(ImageRequest(TEXT, 3), frame, base.vae)[None]
    x = torch.tensor(noise * (sigmas[0] ** 2 + 1) ** 0.5).float()
    for denoise, part in zip(denoisers, (sigmas[:3], sigmas[2:]), strict=True):
        x = k_diffusion.sample_euler(denoise, x, torch.tensor(part).float(), disable=True)
    assert relative_error(draw(pipeline, sampling), x.numpy()) < 1e-4


def test_what_the_refiner_is_told_changes_the_image(workshop: Workshop, pipeline: Pipeline) -> None:
    base = draw(pipeline, options(workshop))
    others = {
        "none": draw(pipeline, options(workshop, add_pipeline=False)),
        "more": draw(pipeline, options(workshop, stage2strength=0.75)),
        "all": draw(pipeline, options(workshop, stage2strength=1.0)),
        "score": draw(pipeline, options(workshop, aesthetic_score=2.0)),
        "negative score": draw(pipeline, options(workshop, negative_aesthetic_score=9.0)),
        "rows of the second encoder": draw(
            pipeline,
            options(workshop),
            dataclasses.replace(cat(), vectors={**cat().vectors, "clip_g": cat(8).vectors["clip_g"]}),
        ),
        "from an image": draw(pipeline, options(workshop, task="img2img"), image=normal(1, 4, 8, 8)),
    }
    assert [name for name, latents in others.items() if relative_error(latents, base) < 1e-4] == []
    assert all(np.isfinite(latents).all() for latents in others.values())


def test_the_refiner_draws_what_is_left_of_an_image(workshop: Workshop, pipeline: Pipeline) -> None:
    start = {"image": normal(1, 4, 8, 8)}
    few, more = (
        draw(pipeline, options(workshop, task="img2img", strength=0.5, stage2strength=share), **start)
        for share in (0.5, 1.0)
    )
    assert np.array_equal(few, more)  # all of its two steps, either way


def test_a_refiner_is_loaded_once(workshop: Workshop, pipeline: Pipeline) -> None:
    draw(pipeline, options(workshop))
    (kept,) = pipeline.refiners.values()
    draw(pipeline, options(workshop, stage2strength=0.25))
    assert list(pipeline.refiners.values()) == [kept]
    assert not hasattr(kept.model, "first_stage_model")
