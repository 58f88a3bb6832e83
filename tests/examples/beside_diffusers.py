"""The shipped model in this toolkit and in diffusers' pipeline, from the same noise, and the docs' figure of it.

python -m tests.examples.beside_diffusers --target docs/images/beside_diffusers.png
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
import numpy as np

from gm import config as configuration
from gm.checkpoints import loading
from gm.config import SamplingConfig, cli
from gm.embeddings.embedding import Embedding, combine
from gm.models import sdxl
from gm.models.sdxl import SDXL
from gm.runtime import rng
from gm.runtime.backend import Backend
from gm.sampling.image_request import ImageRequest, SamplingProgress
from gm.sampling.pipeline import Pipeline
from tests.reference import networks, pipeline

CONFIG = configuration.load("configs/training/tiny_textual_inversion.yaml")
WEIGHTS = Path("checkpoints/tiny_sd_xl_base.safetensors")
PROMPTS = (
    "a red heart on a white background",
    "a small yellow and black striped circle, blue background",
    "a green star with a white outline on a pink background",
    "a cyan cross on a navy background with beige spots",
    "a large purple triangle at the bottom left",
)


def noise(count: int, name: str = "noise beside diffusers") -> np.ndarray:
    """Return standard-normal latents [count, z, h, w]."""
    side = CONFIG.model.resolution // CONFIG.model.vae.reduction
    return rng.normal((count, CONFIG.model.vae.latent_channels, side, side), 0, name)


def theirs(folder: Path) -> pipeline.StableDiffusionXLPipeline:
    """Return diffusers' pipeline on the shipped weights; `folder` takes its files."""
    return pipeline.pipeline(networks.load(CONFIG.model, WEIGHTS, folder), folder)


def ours(
    model: SDXL, prompts: Sequence[str], start: np.ndarray, sampling: SamplingConfig, concepts: Sequence[Embedding] = ()
) -> SamplingProgress:
    """Return the result of this toolkit's sampler from the noise `start` in PyNative mode."""
    pipeline = Pipeline(model, Backend("CPU", graph=False, dtype=ms.float32), "end_of_text")
    requests = [ImageRequest(text, 0, latents) for text, latents in zip(prompts, start, strict=True)]
    at_once = dataclasses.replace(sampling, batch_size=len(requests))
    *_, last = pipeline.draw(requests, combine(concepts, CONFIG.model), at_once)
    return last


def main() -> None:
    from examples.tiny_sdxl.image_grid import image_grid

    parser = cli.Parser("Generate images of the same prompts from the same noise here and with diffusers.")
    parser.add_argument("--target", default="docs/images/beside_diffusers.png", help="(default: %(default)s)")
    flags = parser.read()
    model = sdxl.build(CONFIG.model)
    loading.load_weights(model, WEIGHTS, CONFIG.model)
    start, sampling = noise(len(PROMPTS)), CONFIG.sampling
    with tempfile.TemporaryDirectory() as folder:
        _, images = pipeline.draw(
            theirs(Path(folder)), PROMPTS, start, steps=sampling.sample_step, guidance_scale=sampling.guidance_scale
        )
    drawn = ours(model, PROMPTS, start, sampling)
    worst = np.abs(np.stack(drawn.images).astype(int) - images).max()
    rows = {"this toolkit": drawn.images, f"diffusers: no pixel differs by more than {worst} of 255": list(images)}
    image_grid(rows).save(flags["target"], optimize=True)


if __name__ == "__main__":
    cli.run(main)
