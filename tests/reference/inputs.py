"""Random inputs of the networks, the same for MindSpore and PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gm.config.model import ModelConfig


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts with embedding vectors and size conditioning.

    ids_1, ids_2 [N, L] int32; pool_position [N] int32, that of the first end-of-text; clip_l [n, width 1] and clip_g
    [n, width 2] float32; sizes [N, 6] float32, or [N, 5] for a refiner, the last one an aesthetic score.
    """

    ids_1: np.ndarray
    ids_2: np.ndarray
    pool_position: np.ndarray
    clip_l: np.ndarray
    clip_g: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Random inputs of one training step: posterior of the latents, two noises, timesteps and prompts."""

    mean: np.ndarray
    log_variance: np.ndarray
    posterior_noise: np.ndarray
    noise: np.ndarray
    timestep: np.ndarray
    prompts: Prompts


def prompts(config: ModelConfig, seed: int, count: int = 2, num_vectors: int = 3) -> Prompts:
    """Return `count` random prompts, each with the ids of `num_vectors` embedding vectors at a random position.

    Start and end are the vocabulary's last two ids. Encoder 1 pads with the end, encoder 2 with 0. Sizes differ between
    height and width, and between prompts.
    """
    random = np.random.default_rng(seed)
    vocabulary, length = config.text_encoder_1.vocab_size, config.text_encoder_1.context_length
    ids_1 = np.full((count, length), vocabulary - 1, np.int32)
    ids_2 = np.zeros((count, length), np.int32)
    ends = np.linspace(num_vectors + 3, length - 1, count).astype(np.int32)[::-1].copy()
    for number, end in enumerate(ends):
        tokens = random.integers(1, vocabulary - 2, end).astype(np.int32)
        tokens[0] = vocabulary - 2
        position = random.integers(1, end - num_vectors)
        tokens[position : position + num_vectors] = vocabulary + np.arange(num_vectors)
        for ids in (ids_1, ids_2):
            ids[number, :end] = tokens
            ids[number, end] = vocabulary - 1
    originals = random.integers(200, 2000, (count, 2))
    crops = random.integers(0, 300, (count, 2))
    targets = random.uniform(2, 8, (count, 1)) if config.is_refiner else random.integers(32, 128, (count, 2)) * 8
    clip_l, clip_g = (
        0.02 * random.standard_normal((max(num_vectors, 1), encoder.width), dtype=np.float32)
        for encoder in (config.text_encoder_1, config.text_encoder_2)
    )
    sizes = np.concatenate((originals, crops, targets), axis=1).astype(np.float32)
    return Prompts(ids_1, ids_2, ends, clip_l, clip_g, sizes)


def normal(seed: int, *shape: int) -> np.ndarray:
    """Return standard-normal float32 numbers of `shape`."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def batch(
    config: ModelConfig, seed: int, count: int = 1, num_vectors: int = 2, size: tuple[int, int] = (16, 8)
) -> Batch:
    """Return the random inputs of a training step of `count` images, with latents of `size` (height, width)."""
    random = np.random.default_rng(seed)
    shape = (count, config.vae.latent_channels, *size)
    mean = random.standard_normal(shape, dtype=np.float32) / config.vae.scale_factor
    log_variance = random.standard_normal(shape, dtype=np.float32) - 1.0
    posterior_noise, noise = random.standard_normal((2, *shape), dtype=np.float32)
    timestep = random.integers(0, config.schedule.timesteps, count).astype(np.int32)
    return Batch(mean, log_variance, posterior_noise, noise, timestep, prompts(config, seed, count, num_vectors))


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """Return ‖ours - reference‖ / ‖reference‖ of arrays that must have the same shape."""
    assert ours.shape == reference.shape, f"{ours.shape} against {reference.shape}"
    ours, reference = ours.astype(np.float64), reference.astype(np.float64)
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))
