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
from collections.abc import Iterator
from typing import Any

import numpy as np

from gm.diffusion import registry
from gm.diffusion.sampler_steps import (
    Denoise,
    NoiseSampler,
    Sampler,
    add_noise,
    ancestral_step,
    churn,
    derivative,
    exponential_step,
    is_terminal,
    lagrange_integral,
    predicted_noise,
    steps,
)

# Weights of the last predictions, the newest last, of the Adams-Bashforth methods of order 1 to 4.
_ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (-1 / 2, 3 / 2),
    3: (5 / 12, -16 / 12, 23 / 12),
    4: (-9 / 24, 37 / 24, -59 / 24, 55 / 24),
}


def euler(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """Euler's method for the probability flow dx/dσ = (x - D(x, σ)) / σ (Karras et al., 2022, algorithm 2)."""
    for step, sigma, sigma_next in steps(sigmas):
        x, sigma_hat = churn(x, sigma, step, len(sigmas) - 1, noise_sampler)
        d = derivative(x, denoise(x, sigma_hat, step), sigma_hat)
        x = x + d * (sigma_next - sigma_hat)
        yield x


def euler_ancestral(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """Euler's method to below the next level, then noise up to it: DDPM's reverse step (Ho et al., 2020) for η = 1."""
    for step, sigma, sigma_next in steps(sigmas):
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next, noise_sampler.eta)
        d = derivative(x, denoise(x, sigma, step), sigma)
        x = x + d * (sigma_down - sigma)
        x = add_noise(x, sigma_up, step, noise_sampler)
        yield x


def heun(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """Heun's method (Karras et al., 2022, algorithm 2): Euler's, corrected by the derivative at the end of the step.

    Evaluates twice in each step but a last one down to 0, and a first one at zero terminal SNR.
    """
    for step, sigma, sigma_next in steps(sigmas):
        x, sigma_hat = churn(x, sigma, step, len(sigmas) - 1, noise_sampler)
        d = derivative(x, denoise(x, sigma_hat, step), sigma_hat)
        x_next = x + d * (sigma_next - sigma_hat)
        if sigma_next > 0 and not is_terminal(sigma):
            d = (d + derivative(x_next, denoise(x_next, sigma_next, step), sigma_next)) / 2
        x = x + d * (sigma_next - sigma_hat)
        yield x


def lms(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """Linear multistep method of Adams and Bashforth for uneven steps, over up to four derivatives.

    As in k-diffusion, its coefficients integrate the Lagrange polynomials of the last noise levels.
    """
    derivatives: list[Any] = []
    for step, sigma, sigma_next in steps(sigmas):
        d = derivative(x, denoise(x, sigma, step), sigma)
        derivatives = [*derivatives[-3:], d]
        levels = sigmas[step + 1 - len(derivatives) : step + 1]
        for index, each in enumerate(derivatives):
            x = x + each * lagrange_integral(levels, index, sigma, sigma_next)
        yield x


def dpmpp_2s_ancestral(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """DPM-Solver++(2S) (Lu et al., 2022b, algorithm 1, r = 1/2), ancestral; evaluates twice in a step."""
    for step, sigma, sigma_next in steps(sigmas):
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next, noise_sampler.eta)
        denoised = denoise(x, sigma, step)
        if sigma_down > 0:
            sigma_mid = math.sqrt(sigma * sigma_down)
            denoised = denoise(exponential_step(x, denoised, sigma, sigma_mid), sigma_mid, step)
        x = exponential_step(x, denoised, sigma, sigma_down)
        x = add_noise(x, sigma_up, step, noise_sampler)
        yield x


def dpmpp_2m(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """DPM-Solver++(2M) (Lu et al., 2022b, algorithm 2); the last step down to 0 is of first order."""
    old_denoised = None
    h_last = 0.0
    for step, sigma, sigma_next in steps(sigmas):
        denoised = extrapolated = denoise(x, sigma, step)
        if sigma_next > 0:
            h = math.log(sigma / sigma_next)
            if old_denoised is not None:
                extrapolated = denoised + (denoised - old_denoised) * (h / (2 * h_last))
            h_last = h
        old_denoised = denoised
        x = exponential_step(x, extrapolated, sigma, sigma_next)
        yield x


def dpmpp_2m_sde(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """SDE-DPM-Solver++(2M) (Lu et al., 2022b, section 5), midpoint form, with `eta` of the noise."""
    eta = noise_sampler.eta
    old_denoised = None
    h_last = 0.0
    for step, sigma, sigma_next in steps(sigmas):
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
            x = add_noise(x, sigma_next * math.sqrt(-math.expm1(-2 * eta * h)), step, noise_sampler)
        yield x


def lcm(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """Multistep sampling of latent consistency models (Luo et al., 2023, algorithm 3): denoise, add noise, repeat."""
    for step, sigma, sigma_next in steps(sigmas):
        x = denoise(x, sigma, step)
        x = add_noise(x, sigma_next, step, noise_sampler)
        yield x


def ddim(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """DDIM (Song et al., 2021, equation 12), with `eta` of DDPM's noise.

    In terms of σ it is `euler_ancestral`, which is also exact at zero terminal SNR.
    """
    for step, sigma, sigma_next in steps(sigmas):
        denoised = denoise(x, sigma, step)
        level = math.inf if is_terminal(sigma) else sigma
        sigma_down, sigma_up = ancestral_step(level, sigma_next, noise_sampler.eta)
        x = denoised + predicted_noise(x, denoised, sigma) * sigma_down
        x = add_noise(x, sigma_up, step, noise_sampler)
        yield x


def plms(denoise: Denoise, x: Any, sigmas: np.ndarray, noise_sampler: NoiseSampler) -> Iterator[Any]:
    """PLMS: pseudo linear multistep method (Liu et al., 2022, "Pseudo numerical methods for diffusion models").

    Without Runge-Kutta steps, as in the original code of latent diffusion and diffusers' `PNDMScheduler` with
    `skip_prk_steps`: the first step, which is evaluated at both ends, and those after it use the last one to four
    predictions of the noise, also where the network predicts v (as Stability AI's `plms.py`; diffusers combines v).
    A first step at zero terminal SNR is DDIM's.
    """
    predictions: list[Any] = []
    for step, sigma, sigma_next in steps(sigmas):
        denoised = denoise(x, sigma, step)
        predictions = [*predictions[-3:], predicted_noise(x, denoised, sigma)]
        weights = _ADAMS_BASHFORTH[len(predictions)]
        noise = sum(prediction * weight for prediction, weight in zip(predictions, weights, strict=True))
        if is_terminal(sigma):
            x = denoised + noise * sigma_next
        elif len(predictions) == 1 and step + 2 < len(sigmas):
            x_next = x + noise * (sigma_next - sigma)
            noise_next = predicted_noise(x_next, denoise(x_next, sigma_next, step), sigma_next)
            x = x + (noise + noise_next) * ((sigma_next - sigma) / 2)
        else:
            x = x + noise * (sigma_next - sigma)
        yield x


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
