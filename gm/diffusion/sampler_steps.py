"""Parts of a sampler step: the types of a sampler's arguments, and the formulas that samplers share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gm.diffusion import denoiser

# (x, sigma, step) → the denoised x. `step` counts from 0 within the sigmas of the call; a sampler that evaluates twice
# in a step passes the same number both times.
Denoise = Callable[[Any, float, int], Any]


@dataclass(frozen=True)
class NoiseSampler:
    """The noise that a sampler adds on its way.

    sample: step → standard normal noise of the shape of x
    eta: fraction of the noise of the ancestral and SDE samplers and of DDIM; 0 is deterministic
    s_noise: factor of all noise
    s_churn, s_tmin, s_tmax: how much noise Euler and Heun add before a step, and between which levels (Karras et al.,
        2022, algorithm 2)
    """

    sample: Callable[[int], Any]
    eta: float = 1.0
    s_noise: float = 1.0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf


Sampler = Callable[[Denoise, Any, np.ndarray, NoiseSampler], Iterator[Any]]


def steps(sigmas: np.ndarray) -> Iterator[tuple[int, float, float]]:
    """Yield (step, sigma, sigma_next)."""
    for step in range(len(sigmas) - 1):
        yield step, float(sigmas[step]), float(sigmas[step + 1])


def derivative(x: Any, denoised: Any, sigma: float) -> Any:
    """Return dx/dσ at level `sigma` (Karras et al., 2022, algorithm 2; k-diffusion's `to_d`)."""
    return (x - denoised) / sigma


def predicted_noise(x: Any, denoised: Any, sigma: float) -> Any:
    """Return ε, the noise in `x` by the prediction: its derivative, or at zero terminal SNR all of `x`."""
    return denoiser.scale_model_input(x, sigma) if is_terminal(sigma) else derivative(x, denoised, sigma)


def is_terminal(sigma: float) -> bool:
    """Whether `sigma` is that of zero terminal SNR."""
    return sigma >= denoiser.TERMINAL_SIGMA


def churn(x: Any, sigma: float, step: int, steps: int, noise_sampler: NoiseSampler) -> tuple[Any, float]:
    """Return `x` with the noise that `s_churn` adds, and its level (Karras et al., 2022, algorithm 2)."""
    is_in_range = noise_sampler.s_tmin <= sigma <= noise_sampler.s_tmax
    gamma = min(noise_sampler.s_churn / steps, math.sqrt(2) - 1) if is_in_range else 0.0
    sigma_hat = sigma * (1 + gamma)
    return add_noise(x, math.sqrt(sigma_hat**2 - sigma**2), step, noise_sampler), sigma_hat


def ancestral_step(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """Return the level to denoise to, and the level of the noise that leads from there back up to `sigma_next`."""
    sigma_up = min(sigma_next, eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2))
    return math.sqrt(sigma_next**2 - sigma_up**2), sigma_up


def add_noise(x: Any, sigma: float, step: int, noise_sampler: NoiseSampler) -> Any:
    """Return `x` with noise of level `sigma`, scaled by `s_noise`."""
    sigma = sigma * noise_sampler.s_noise
    return x + noise_sampler.sample(step) * sigma if sigma > 0 else x


def exponential_step(x: Any, denoised: Any, sigma: float, sigma_next: float) -> Any:
    """Return x at level `sigma_next` if `denoised` stays constant: exponential integrator of Lu et al., 2022b."""
    ratio = sigma_next / sigma
    return x * ratio + denoised * (1 - ratio)


def lagrange_integral(levels: np.ndarray, index: int, start: float, end: float) -> float:
    """Return ∫ of the polynomial that is 1 at levels[index] and 0 at the others, from `start` to `end`."""
    others = np.delete(levels, index)
    whole = np.polynomial.Polynomial.fromroots(others).integ() if len(others) else np.polynomial.Polynomial([0.0, 1.0])
    return float((whole(end) - whole(start)) / np.prod(levels[index] - others))
