"""Noise levels: those the model was trained on, and those a sampler visits.

A level is a standard deviation σ of noise on unit-scale latents ("variance exploding", Karras et al., 2022); the
model's own betas are DDPM's (Ho et al., 2020) with the square-root-linear spacing of latent diffusion.
"""

from __future__ import annotations

import numpy as np

from gm.model_config import ScheduleConfig


def training_sigmas(config: ScheduleConfig) -> np.ndarray:
    """Return σ of every training level, float64 [timesteps], rising (0.0292 … 14.6146 for SDXL)."""
    betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.timesteps, dtype=np.float64) ** 2
    kept = np.cumprod(1.0 - betas)
    return np.sqrt((1.0 - kept) / kept)


def sampling_levels(config: ScheduleConfig, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (σ [steps + 1], falling and ending in 0; the network's time of each but the last [steps]).

    Times are `linspace(timesteps - 1, 0, steps, endpoint=False)` rounded down, as in the published reference.
    """
    times = np.linspace(config.timesteps - 1, 0, steps, endpoint=False).astype(np.int64)
    return np.append(training_sigmas(config)[times], 0.0), times
