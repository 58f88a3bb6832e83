"""What is asked of a painter, and what it answers while it draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gm.config.model import VAEConfig
from gm.runtime import rng
from gm.sampling.resolution import ImageSize


@dataclass(frozen=True)
class ImageRequest:
    """One image to draw.

    `noise` [z, h, w] replaces the seed's. `image` [z, h, w], scaled latents, is what to start from, and `mask` [h, w]
    is 1 where that is drawn anew and 0 where it stays.
    """

    prompt: str
    seed: int
    noise: np.ndarray | None = None
    image: np.ndarray | None = None
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class SamplingProgress:
    """Progress: `done` of `total` sampler steps; `images` uint8 [H, W, 3] are those finished by this step, if any."""

    done: int
    total: int
    images: tuple[np.ndarray, ...] = ()
    latents: np.ndarray | None = None  # of the images, still scaled: float32 [N, z, h, w]
    previews: tuple[np.ndarray, ...] = ()  # of those that are being drawn, small, uint8 [h, w, 3]


def noise(order: ImageRequest, frame: ImageSize, config: VAEConfig) -> np.ndarray:
    """Return the standard-normal noise [z, h, w] that `order` starts from."""
    if order.noise is not None:
        return order.noise
    return rng.normal(_shape(frame, config), order.seed, rng.INITIAL_NOISE)


def fresh_noise(order: ImageRequest, frame: ImageSize, config: VAEConfig, step: int) -> np.ndarray:
    """Return the standard-normal noise [z, h, w] that a sampler may add in `step`."""
    return rng.normal(_shape(frame, config), order.seed, "fresh", step)


def _shape(frame: ImageSize, config: VAEConfig) -> tuple[int, int, int]:
    return config.latent_channels, frame.height // config.reduction, frame.width // config.reduction
