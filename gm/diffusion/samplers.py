"""Samplers: from noise to latents, as functions of one signature.

A sampler takes (denoise, x, sigmas, noise_sampler) and yields x after each step. `x` starts at noise level sigmas[0]
and ends at sigmas[-1], which may be 0. The caller owns the progress bar. `x` may be an array of any kind, NumPy's or
MindSpore's, because all coefficients are Python floats.

The names are those of k-diffusion (Crowson, github.com/crowsonkb/k-diffusion), with which the tests compare every step;
DDIM, PLMS and LCM are compared with diffusers.

With zero terminal SNR sigmas[0] is `denoiser.TERMINAL_SIGMA`, which stands for infinity. Methods of second order in σ
have no meaning there: their first step is of first order, whose limit is denoised + sigma_next·noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gm.diffusion import denoiser, registry

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


def euler(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """Euler's method for the probability flow dx/dσ = (x - D(x, σ)) / σ (Karras et al., 2022, algorithm 2)."""
    for step, sigma, sigma_next in _steps(sigmas):
        x, sigma_hat = _churn(x, sigma, step, len(sigmas) - 1, noise_sampler)
        d = _derivative(x, denoise(x, sigma_hat, step), sigma_hat)
        x = x + d * (sigma_next - sigma_hat)
        yield x


def euler_ancestral(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """Euler's method to below the next level, then noise up to it: DDPM's reverse step (Ho et al., 2020) for η = 1."""
    for step, sigma, sigma_next in _steps(sigmas):
        sigma_down, sigma_up = _ancestral_step(sigma, sigma_next, noise_sampler.eta)
        d = _derivative(x, denoise(x, sigma, step), sigma)
        x = x + d * (sigma_down - sigma)
        x = _add_noise(x, sigma_up, step, noise_sampler)
        yield x


def heun(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """Heun's method (Karras et al., 2022, algorithm 2): Euler's, corrected by the derivative at the end of the step.

    Evaluates twice in each step but a last one down to 0, and a first one at zero terminal SNR.
    """
    for step, sigma, sigma_next in _steps(sigmas):
        x, sigma_hat = _churn(x, sigma, step, len(sigmas) - 1, noise_sampler)
        d = _derivative(x, denoise(x, sigma_hat, step), sigma_hat)
        x_next = x + d * (sigma_next - sigma_hat)
        if sigma_next > 0 and not _is_terminal(sigma):
            d = (d + _derivative(x_next, denoise(x_next, sigma_next, step), sigma_next)) / 2
        x = x + d * (sigma_next - sigma_hat)
        yield x


def lms(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """Linear multistep method of Adams and Bashforth for uneven steps, over up to four derivatives.

    As in k-diffusion, its coefficients integrate the Lagrange polynomials of the last noise levels.
    """
    derivatives: list[Any] = []
    for step, sigma, sigma_next in _steps(sigmas):
        d = _derivative(x, denoise(x, sigma, step), sigma)
        derivatives = [*derivatives[-3:], d]
        levels = sigmas[step + 1 - len(derivatives) : step + 1]
        for index, derivative in enumerate(derivatives):
            x = x + derivative * _lagrange_integral(levels, index, sigma, sigma_next)
        yield x


def dpmpp_2s_ancestral(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """DPM-Solver++(2S) (Lu et al., 2022b, algorithm 1, r = 1/2), ancestral; evaluates twice in a step."""
    for step, sigma, sigma_next in _steps(sigmas):
        sigma_down, sigma_up = _ancestral_step(sigma, sigma_next, noise_sampler.eta)
        denoised = denoise(x, sigma, step)
        if sigma_down > 0:
            sigma_mid = math.sqrt(sigma * sigma_down)
            denoised = denoise(_exponential_step(x, denoised, sigma, sigma_mid), sigma_mid, step)
        x = _exponential_step(x, denoised, sigma, sigma_down)
        x = _add_noise(x, sigma_up, step, noise_sampler)
        yield x


def dpmpp_2m(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """DPM-Solver++(2M) (Lu et al., 2022b, algorithm 2); the last step down to 0 is of first order."""
    old_denoised = None
    h_last = 0.0
    for step, sigma, sigma_next in _steps(sigmas):
        denoised = extrapolated = denoise(x, sigma, step)
        if sigma_next > 0:
            h = math.log(sigma / sigma_next)
            if old_denoised is not None:
                extrapolated = denoised + (denoised - old_denoised) * (h / (2 * h_last))
            h_last = h
        old_denoised = denoised
        x = _exponential_step(x, extrapolated, sigma, sigma_next)
        yield x


def dpmpp_2m_sde(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """SDE-DPM-Solver++(2M) (Lu et al., 2022b, section 5), midpoint form, with `eta` of the noise."""
    eta = noise_sampler.eta
    old_denoised = None
    h_last = 0.0
    for step, sigma, sigma_next in _steps(sigmas):
        denoised = extrapolated = denoise(x, sigma, step)
        if sigma_next == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_next)
            if old_denoised is not None:
                extrapolated = denoised + (denoised - old_denoised) * (h / (2 * h_last))
            old_denoised = denoised
            h_last = h
            x = x * (sigma_next / sigma * math.exp(-eta * h)) + extrapolated * -math.expm1(-h * (1 + eta))
            x = _add_noise(x, sigma_next * math.sqrt(-math.expm1(-2 * eta * h)), step, noise_sampler)
        yield x


def lcm(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """Multistep sampling of latent consistency models (Luo et al., 2023, algorithm 3): denoise, add noise, repeat."""
    for step, sigma, sigma_next in _steps(sigmas):
        x = denoise(x, sigma, step)
        x = _add_noise(x, sigma_next, step, noise_sampler)
        yield x


def ddim(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """DDIM (Song et al., 2021, equation 12), with `eta` of DDPM's noise.

    In terms of σ it is `euler_ancestral`, which is also exact at zero terminal SNR.
    """
    for step, sigma, sigma_next in _steps(sigmas):
        denoised = denoise(x, sigma, step)
        level = math.inf if _is_terminal(sigma) else sigma
        sigma_down, sigma_up = _ancestral_step(level, sigma_next, noise_sampler.eta)
        x = denoised + _predicted_noise(x, denoised, sigma) * sigma_down
        x = _add_noise(x, sigma_up, step, noise_sampler)
        yield x


def plms(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """PLMS: pseudo linear multistep method (Liu et al., 2022, "Pseudo numerical methods for diffusion models").

    Without Runge-Kutta steps, as in the original code of latent diffusion and diffusers' `PNDMScheduler` with
    `skip_prk_steps`: the first step, which is evaluated at both ends, and those after it use the last one to four
    predictions of the noise. A first step at zero terminal SNR is DDIM's.
    """
    predictions: list[Any] = []
    for step, sigma, sigma_next in _steps(sigmas):
        denoised = denoise(x, sigma, step)
        predictions = [*predictions[-3:], _predicted_noise(x, denoised, sigma)]
        weights = _ADAMS_BASHFORTH[len(predictions)]
        noise = sum(prediction * weight for prediction, weight in zip(predictions, weights, strict=True))
        if _is_terminal(sigma):
            x = denoised + noise * sigma_next
        elif len(predictions) == 1 and step + 2 < len(sigmas):
            x_next = x + noise * (sigma_next - sigma)
            noise_next = _predicted_noise(x_next, denoise(x_next, sigma_next, step), sigma_next)
            x = x + (noise + noise_next) * ((sigma_next - sigma) / 2)
        else:
            x = x + noise * (sigma_next - sigma)
        yield x


# Weights of the last predictions, the newest last, of the Adams-Bashforth methods of order 1 to 4.
_ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (-1 / 2, 3 / 2),
    3: (5 / 12, -16 / 12, 23 / 12),
    4: (-9 / 24, 37 / 24, -59 / 24, 55 / 24),
}

SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "lms": lms,
    "lcm": lcm,
    "ddim": ddim,
    "plms": plms,
}
# AUTOMATIC1111's names, also those in the generation parameters of an image.
TITLES = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "lms": "LMS",
    "lcm": "LCM",
    "ddim": "DDIM",
    "plms": "PLMS",
}
# Samplers whose last step ends at the lowest trained noise level (`schedule.sampling_sigmas`).
END_AT_LOWEST_SIGMA = ("ddim", "plms")
# The names in mindone's configs (sgm's classes), diffusers' name of PLMS, and AUTOMATIC1111's.
ALIASES = {
    "EulerEDMSampler": "euler",
    "EulerAncestralSampler": "euler_ancestral",
    "HeunEDMSampler": "heun",
    "DPMPP2SAncestralSampler": "dpmpp_2s_ancestral",
    "DPMPP2MSampler": "dpmpp_2m",
    "LinearMultistepSampler": "lms",
    "pndm": "plms",
    **{title: name for name, title in TITLES.items()},
}


def resolve_name(name: str) -> str:
    """Return the name in `SAMPLERS` that `name` stands for; UserError lists the known names."""
    return registry.resolve("sampler", name, SAMPLERS, ALIASES)


def _steps(sigmas: np.ndarray) -> Iterator[tuple[int, float, float]]:
    """Yield (step, sigma, sigma_next)."""
    for step in range(len(sigmas) - 1):
        yield step, float(sigmas[step]), float(sigmas[step + 1])


def _derivative(x: Any, denoised: Any, sigma: float) -> Any:
    """Return dx/dσ at level `sigma` (Karras et al., 2022, algorithm 2; k-diffusion's `to_d`)."""
    return (x - denoised) / sigma


def _predicted_noise(x: Any, denoised: Any, sigma: float) -> Any:
    """Return ε, the noise in `x` by the prediction: its derivative, or at zero terminal SNR all of `x`."""
    return denoiser.scale_model_input(x, sigma) if _is_terminal(sigma) else _derivative(x, denoised, sigma)


def _is_terminal(sigma: float) -> bool:
    """Whether `sigma` is that of zero terminal SNR."""
    return sigma >= denoiser.TERMINAL_SIGMA


def _churn(x: Any, sigma: float, step: int, steps: int, noise_sampler: NoiseSampler) -> tuple[Any, float]:
    """Return `x` with the noise that `s_churn` adds, and its level (Karras et al., 2022, algorithm 2)."""
    is_in_range = noise_sampler.s_tmin <= sigma <= noise_sampler.s_tmax
    gamma = min(noise_sampler.s_churn / steps, math.sqrt(2) - 1) if is_in_range else 0.0
    sigma_hat = sigma * (1 + gamma)
    return _add_noise(x, math.sqrt(sigma_hat**2 - sigma**2), step, noise_sampler), sigma_hat


def _ancestral_step(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """Return the level to denoise to, and the level of the noise that leads from there back up to `sigma_next`."""
    sigma_up = min(sigma_next, eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2))
    return math.sqrt(sigma_next**2 - sigma_up**2), sigma_up


def _add_noise(x: Any, sigma: float, step: int, noise_sampler: NoiseSampler) -> Any:
    sigma = sigma * noise_sampler.s_noise
    return x + noise_sampler.sample(step) * sigma if sigma > 0 else x


def _exponential_step(x: Any, denoised: Any, sigma: float, sigma_next: float) -> Any:
    """Return x at level `sigma_next` if `denoised` stays constant: exponential integrator of Lu et al., 2022b."""
    ratio = sigma_next / sigma
    return x * ratio + denoised * (1 - ratio)


def _lagrange_integral(levels: np.ndarray, index: int, start: float, end: float) -> float:
    """Return ∫ of the polynomial that is 1 at levels[index] and 0 at the others, from `start` to `end`."""
    others = np.delete(levels, index)
    whole = np.polynomial.Polynomial.fromroots(others).integ() if len(others) else np.polynomial.Polynomial([0.0, 1.0])
    return float((whole(end) - whole(start)) / np.prod(levels[index] - others))
