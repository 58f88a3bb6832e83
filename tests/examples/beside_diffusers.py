"""The shipped model in our pipeline and in diffusers', from the same noise; as a script it makes the docs' figure.

python -m tests.examples.beside_diffusers --target docs/images/beside_diffusers.png
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from diffusers import StableDiffusionXLPipeline

from gm import config as configuration
from gm.checkpoints import loading
from gm.config import SamplingConfig, cli
from gm.config.parser import Parser
from gm.embeddings.embedding import Embedding, combine
from gm.models import stable_diffusion
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime import rng
from gm.runtime.backend import Backend
from gm.sampling import request
from gm.sampling.pipeline import Pipeline, SamplingProgress
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
    side = CONFIG.model.resolution // CONFIG.model.vae.downsample_factor
    return rng.normal((count, CONFIG.model.vae.latent_channels, side, side), 0, name)


def diffusers_pipeline(folder: Path) -> StableDiffusionXLPipeline:
    """Return diffusers' pipeline on the shipped weights; `folder` is for its files."""
    return pipeline.diffusers_pipeline(networks.load(CONFIG.model, WEIGHTS, folder), folder)


def generate(
    model: StableDiffusion,
    prompts: Sequence[str],
    noise: np.ndarray,
    sampling: SamplingConfig,
    concepts: Sequence[Embedding] = (),
) -> SamplingProgress:
    """Return the last step of our pipeline from `noise`, in PyNative mode, with the images and latents."""
    ours = Pipeline(model, Backend("CPU", graph=False, dtype=ms.float32), "end_of_text")
    embeddings = combine(concepts, CONFIG.model)
    requests = request.image_requests(prompts, sampling, CONFIG.model, embeddings)
    requests = [dataclasses.replace(each, noise=latents) for each, latents in zip(requests, noise, strict=True)]
    *_, last = ours.generate(requests, embeddings, dataclasses.replace(sampling, batch_size=len(requests)))
    return last


def main() -> None:
    from examples.tiny_sdxl.image_grid import image_grid

    parser = Parser("Generate images of the same prompts from the same noise here and with diffusers.")
    parser.add_argument("--target", default="docs/images/beside_diffusers.png", help="(default: %(default)s)")
    flags = parser.read()
    model = stable_diffusion.build(CONFIG.model)
    loading.load_weights(model, WEIGHTS, CONFIG.model)
    start, sampling = noise(len(PROMPTS)), CONFIG.sampling
    with tempfile.TemporaryDirectory() as folder:
        _, images = pipeline.generate(
            diffusers_pipeline(Path(folder)),
            PROMPTS,
            start,
            steps=sampling.sample_step,
            guidance_scale=sampling.guidance_scale,
        )
    ours = generate(model, PROMPTS, start, sampling)
    worst = np.abs(np.stack(ours.images).astype(int) - images).max()
    rows = {"this toolkit": ours.images, f"diffusers: no pixel differs by more than {worst} of 255": list(images)}
    image_grid(rows).save(flags["target"], optimize=True)


if __name__ == "__main__":
    cli.run(main)
