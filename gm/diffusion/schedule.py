"""Noise schedule: the sigmas that the model was trained on, and the sigmas of a sampling run.

A sigma is the standard deviation σ of the noise on unit-scale latents ("variance exploding", Karras et al., 2022). The
model's betas are those of DDPM (Ho et al., 2020) with the "scaled linear" spacing of latent diffusion (Rombach et al.,
2022): linear in the square root.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gm.config import SamplingConfig
from gm.config.model import ScheduleConfig
from gm.diffusion import denoiser, registry, samplers
from gm.errors import UserError


def training_sigmas(config: ScheduleConfig) -> np.ndarray:
    """Return σ of every training timestep, float64 [timesteps], rising (0.0292 … 14.6146 for SDXL).

    With zero terminal SNR the last stands for infinity: `denoiser.TERMINAL_SIGMA`.
    """
    betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.timesteps, dtype=np.float64) ** 2
    alphas_cumprod = np.cumprod(1.0 - betas)
    if not config.rescale_betas_zero_snr:
        return np.sqrt((1.0 - alphas_cumprod) / alphas_cumprod)
    alphas_cumprod = _zero_terminal_snr(alphas_cumprod[:-1], alphas_cumprod[-1])
    return np.append(np.sqrt((1.0 - alphas_cumprod) / alphas_cumprod), denoiser.TERMINAL_SIGMA)


def sigma_to_timestep(trained_sigmas: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Return the timestep of each of `sigmas`: its index in `trained_sigmas`.

    Between two trained sigmas it is interpolated linearly in log σ, as in diffusers; beyond the ends it is clamped.
    """
    return np.interp(np.log(sigmas), np.log(trained_sigmas), np.arange(len(trained_sigmas)))


def legacy(trained_sigmas: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """Return the sigmas of the timesteps `linspace(timesteps - 1, 0, steps, endpoint=False)`, rounded down.

    The schedule of the published model: `LegacyDDPMDiscretization` in sgm.
    """
    timesteps = np.linspace(len(trained_sigmas) - 1, 0, sampling.sample_step, endpoint=False).astype(np.int64)
    return trained_sigmas[timesteps]


def karras(trained_sigmas: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """Return sigmas from the highest to the lowest trained, evenly spaced in σ^(1/7) (Karras et al., 2022, eq. 5)."""
    return _karras_spacing(trained_sigmas[-1], trained_sigmas[0], 7.0, sampling.sample_step)


def edm(trained_sigmas: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """Return sigmas from `sigma_max` to `sigma_min`, evenly spaced in σ^(1/rho) (Karras et al., 2022, eq. 5)."""
    if sampling.sigma_min >= sampling.sigma_max:
        raise UserError(f"sigma_min is {sampling.sigma_min}; it must be less than sigma_max, {sampling.sigma_max}")
    return _karras_spacing(sampling.sigma_max, sampling.sigma_min, sampling.rho, sampling.sample_step)


def leading(trained_sigmas: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """Return the sigmas of the timesteps 1, 1 + r, 1 + 2r, …, where r is timesteps // steps.

    The spacing of the original code (CompVis, `make_ddim_timesteps`) and of diffusers' `leading` with `steps_offset` 1.
    """
    _check_steps("leading", sampling.sample_step, len(trained_sigmas) - 1)
    ratio = len(trained_sigmas) // sampling.sample_step
    return trained_sigmas[np.arange(sampling.sample_step)[::-1] * ratio + 1]


def trailing(trained_sigmas: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """Return the sigmas of evenly spaced timesteps of which the first is the last trained (Lin et al., 2023, table 2).

    They are those of diffusers' `trailing`.
    """
    count = len(trained_sigmas)
    _check_steps("trailing", sampling.sample_step, count)
    timesteps = np.round(count - np.arange(sampling.sample_step) * (count / sampling.sample_step)) - 1
    return trained_sigmas[timesteps.astype(np.int64)]


SCHEDULES: dict[str, Callable[[np.ndarray, SamplingConfig], np.ndarray]] = {
    "legacy": legacy,
    "karras": karras,
    "edm": edm,
    "leading": leading,
    "trailing": trailing,
}
# The names in mindone's configs (sgm's classes).
ALIASES = {"LegacyDDPMDiscretization": "legacy", "EDMDiscretization": "edm"}


def resolve_name(name: str) -> str:
    """Return the name in `SCHEDULES` that `name` stands for; UserError lists the known names."""
    return registry.resolve("schedule", name, SCHEDULES, ALIASES)


def sampling_sigmas(config: ScheduleConfig, sampling: SamplingConfig) -> np.ndarray:
    """Return the sigmas of a sampling run, float64 [steps + 1], falling and ending in 0.

    DDIM and PLMS end at the lowest trained level, if the schedule stays above it: `set_alpha_to_one` is false in the
    scheduler configs of Stable Diffusion and SDXL, as in the original code. Raises UserError for an unknown schedule,
    for sigmas of the schedule `edm` that do not fall, and for more steps than timesteps.
    """
    trained = training_sigmas(config)
    sigmas = SCHEDULES[resolve_name(sampling.schedule)](trained, sampling)
    ends_at_lowest = samplers.resolve_name(sampling.sampler) in samplers.END_AT_LOWEST_SIGMA
    return np.append(sigmas, trained[0] if ends_at_lowest and sigmas[-1] > 1.001 * trained[0] else 0.0)


def step_count(fraction: float, steps: int) -> int:
    """Return the `fraction` of `steps`, rounded down; 0.29 of 100 are 29, though the product is a little less."""
    return int(fraction * steps + 1e-9)


def _zero_terminal_snr(alphas_cumprod: np.ndarray, last: float) -> np.ndarray:
    """Return ᾱ moved and scaled in its square root so that the `last` becomes 0 and the first stays.

    Lin et al., 2023, algorithm 1.
    """
    root = np.sqrt(alphas_cumprod)
    return ((root - last**0.5) * root[0] / (root[0] - last**0.5)) ** 2


def _check_steps(name: str, steps: int, most: int) -> None:
    if steps > most:
        raise UserError(f"--schedule {name} has at most {most} steps of this model; --sample_step is {steps}")


def _karras_spacing(sigma_max: float, sigma_min: float, rho: float, steps: int) -> np.ndarray:
    return np.asarray(np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho)
