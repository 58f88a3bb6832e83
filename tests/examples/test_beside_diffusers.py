"""The shipped model in diffusers' pipeline: the same images from the same noise, with a trained embedding too."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from examples.tiny_sdxl import evaluator, measure
from examples.tiny_sdxl.concepts import HUMBUG
from gm.embeddings.embedding import Embedding
from gm.embeddings.io import save
from tests.examples import beside_diffusers
from tests.examples.beside_diffusers import CONFIG, PROMPTS, generate
from tests.reference import pipeline
from tests.reference.inputs import relative_error

pytestmark = pytest.mark.reference

SAMPLING = dataclasses.replace(CONFIG.sampling, sample_step=10)
STEPS = {"steps": SAMPLING.sample_step, "guidance_scale": SAMPLING.guidance_scale}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory):
    return beside_diffusers.diffusers_pipeline(tmp_path_factory.mktemp("pipeline"))


def test_images_from_noise(tiny, pipe) -> None:
    start = beside_diffusers.noise(2)
    latents, images = pipeline.generate(pipe, PROMPTS[:2], start, **STEPS)
    generated = generate(tiny, PROMPTS[:2], start, SAMPLING)
    assert generated.latents is not None
    assert relative_error(generated.latents, latents) < 1e-4
    assert np.abs(np.stack(generated.images).astype(int) - images).max() <= 1
    assert images.std() > 30


def test_diffusers_loads_our_safetensors_file(tiny, pipe, humbug: Embedding, tmp_path: Path) -> None:
    save(humbug, tmp_path / "humbug.safetensors")
    pipeline.load_embedding(pipe, tmp_path / "humbug.safetensors", HUMBUG.placeholder_token)
    prompts = measure.prompts_for(HUMBUG, HUMBUG.placeholder_token)
    start = beside_diffusers.noise(len(prompts), "noise for a word")
    latents, images = pipeline.generate(pipe, prompts, start, **STEPS)
    generated = generate(tiny, prompts, start, SAMPLING, [humbug])
    assert generated.latents is not None
    assert relative_error(generated.latents, latents) < 1e-4
    before = generate(tiny, measure.prompts_for(HUMBUG, HUMBUG.initializer_token), start, SAMPLING)

    def distance(image: np.ndarray) -> float:
        return evaluator.distance(image, HUMBUG.colors, HUMBUG.shape)

    ratios = [distance(a) / distance(b) for a, b in zip(images, before.images, strict=True)]
    assert float(np.median(ratios)) < 0.5
