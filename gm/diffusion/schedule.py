"""Noise levels: those the model was trained on, and those a sampler visits.

A level is a standard deviation σ of noise on unit-scale latents ("variance exploding", Karras et al., 2022); the
model's own betas are DDPM's (Ho et al., 2020) with the square-root-linear spacing of latent diffusion.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gm.config import SamplingConfig
from gm.config.model import ScheduleConfig
from gm.diffusion import registry
from gm.errors import UserError


def training_sigmas(config: ScheduleConfig) -> np.ndarray:
    """Return σ of every training level, float64 [timesteps], rising (0.0292 … 14.6146 for SDXL)."""
    betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.timesteps, dtype=np.float64) ** 2
    kept = np.cumprod(1.0 - betas)
    return np.sqrt((1.0 - kept) / kept)


def sigma_to_timestep(trained: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Return the network's time for each of `sigmas`: the index of that level in `trained`.

    Between two levels it is interpolated along log σ; beyond the ends it is the end's.
    """
    return np.interp(np.log(sigmas), np.log(trained), np.arange(len(trained)))


def legacy(trained: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """Return the levels of times `linspace(timesteps - 1, 0, steps, endpoint=False)`, rounded down.

    The spacing of the published reference; `legacy` is what it calls DDPM's table.
    """
    return trained[np.linspace(len(trained) - 1, 0, sampling.sample_step, endpoint=False).astype(np.int64)]


def karras(trained: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """Return levels from the model's highest to its lowest, evenly spaced as σ^(1/7) (Karras et al., 2022, eq. 5)."""
    return _evenly(trained[-1], trained[0], 7.0, sampling.sample_step)


def edm(trained: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """Return levels from `sigma_max` to `sigma_min`, evenly spaced as σ^(1/rho) (Karras et al., 2022, eq. 5)."""
    if sampling.sigma_min >= sampling.sigma_max:
        raise UserError(f"sigma_min is {sampling.sigma_min}; it must be less than sigma_max, {sampling.sigma_max}")
    return _evenly(sampling.sigma_max, sampling.sigma_min, sampling.rho, sampling.sample_step)


SCHEDULES: dict[str, Callable[[np.ndarray, SamplingConfig], np.ndarray]] = {
    "legacy": legacy,
    "karras": karras,
    "edm": edm,
}
# The names that mindone's users know.
ALIASES = {"LegacyDDPMDiscretization": "legacy", "EDMDiscretization": "edm"}


def by_name(name: str) -> str:
    """Return the name in `SCHEDULES` that `name` stands for; UserError lists the known ones."""
    return registry.resolve("schedule", name, SCHEDULES, ALIASES)


def sampling_sigmas(config: ScheduleConfig, sampling: SamplingConfig) -> np.ndarray:
    """Return the levels that `sampling` visits, float64 [steps + 1], falling and ending in 0.

    Raises UserError for an unknown schedule, and for levels of the schedule `edm` that do not fall.
    """
    return np.append(SCHEDULES[by_name(sampling.schedule)](training_sigmas(config), sampling), 0.0)


def step_count(share: float, steps: int) -> int:
    """Return how many of `steps` a `share` of them is, rounded down; 0.29 of 100 is 29, whatever floats make of it."""
    return int(share * steps + 1e-9)


def _evenly(highest: float, lowest: float, rho: float, steps: int) -> np.ndarray:
    return np.asarray(np.linspace(highest ** (1 / rho), lowest ** (1 / rho), steps) ** rho)
