"""What the sampling tests share: embeddings for the small models, and images by prompt, seed and options."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np

from gm.config import SamplingConfig
from gm.config.model import ModelConfig
from gm.embeddings.embedding import Embedding, LoadedEmbeddings, combine
from gm.runtime.backend import Backend
from gm.sampling import request
from gm.sampling.pipeline import Pipeline, SamplingProgress
from gm.sampling.request import ImageRequest

PYNATIVE = Backend("CPU", graph=False, dtype=ms.float32)
WIDTHS = {"clip_l": 16, "clip_g": 24}  # of the workshop's model


def toy(seed: int = 0, token: str = "<toy>") -> Embedding:
    """Return an embedding of two random vectors for the workshop's model."""
    random = np.random.default_rng(seed)
    return Embedding(
        token, {name: random.standard_normal((2, width)).astype(np.float32) for name, width in WIDTHS.items()}
    )


def image_request(
    prompt: str,
    seed: int,
    model: ModelConfig,
    embeddings: LoadedEmbeddings | None = None,
    sampling: SamplingConfig | None = None,
    **fields: Any,
) -> ImageRequest:
    """Return a request with options of `sampling`; `fields` are the request's own (`noise`, `init_latents`, `mask`)."""
    options = dataclasses.replace(sampling or SamplingConfig(), seed=seed)
    (made,) = request.image_requests([prompt], options, model, embeddings or combine([], model))
    return dataclasses.replace(made, **fields)


@dataclasses.dataclass(frozen=True)
class Generated:
    """Images uint8 [N, H, W, 3], their scaled latents [N, z, h, w], and the progress of all steps."""

    images: np.ndarray
    latents: np.ndarray
    progress: list[SamplingProgress]


def generate(
    pipeline: Pipeline,
    *prompts: tuple[str, int],
    concepts: Sequence[Embedding] | None = None,
    fields: Sequence[dict[str, Any]] | None = None,
    **options: Any,
) -> Generated:
    """Generate an image for each (prompt, seed); `options` are those of SamplingConfig, 3 steps if not given.

    `fields` are each request's own. Without `concepts` the prompts may use `toy()`.
    """
    sampling = SamplingConfig(**{"sample_step": 3, **options})
    model = pipeline.model.config
    embeddings = combine([toy()] if concepts is None else concepts, model)
    requests = [
        image_request(text, seed, model, embeddings, sampling, **own)
        for (text, seed), own in zip(prompts, fields or [{}] * len(prompts), strict=True)
    ]
    progress = list(pipeline.generate(requests, embeddings, sampling))
    latents = np.concatenate([step.latents for step in progress if step.latents is not None])
    return Generated(np.stack([image for step in progress for image in step.images]), latents, progress)
