"""Denoisers of distributions for which the answer is known, and the inputs of a sampler."""

from __future__ import annotations

from typing import Any

import numpy as np

from gm.config import SamplingConfig
from gm.config.model import ScheduleConfig
from gm.diffusion import schedule
from gm.diffusion.sampler_steps import NoiseSampler

STD = 0.5
TRAINED = schedule.training_sigmas(ScheduleConfig())


def normal_data(x: Any, sigma: float, step: int = 0) -> Any:
    """The ideal denoiser of data that is N(0, STD²)."""
    return x * STD**2 / (STD**2 + sigma**2)


def two_modes(x: np.ndarray, sigma: float, step: int = 0) -> np.ndarray:
    """The ideal denoiser of data that is N(±1, STD²): not linear in x, and different at each level."""
    variance = STD**2 + sigma**2
    center = np.tanh(x / variance)
    return center + (x - center) * STD**2 / variance


ZERO_SNR = ScheduleConfig(prediction="v_prediction", rescale_betas_zero_snr=True)


def sampling_sigmas(steps: int, name: str = "legacy", *, zero_snr: bool = False, **options: Any) -> np.ndarray:
    config = ZERO_SNR if zero_snr else ScheduleConfig()
    return schedule.sampling_sigmas(config, SamplingConfig(schedule=name, sample_step=steps, **options))


def noise_sampler(shape: tuple[int, ...] = (), **options: float) -> NoiseSampler:
    """Return reproducible noise, different in each step."""
    return NoiseSampler(lambda step: np.random.default_rng(step).standard_normal(shape), **options)
