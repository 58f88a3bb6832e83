"""Ways from noise to an image, all of one signature: (denoise, x, sigmas, fresh) → x after each step.

`denoise(x, sigma, step)` returns the clean latents it believes in; `x` starts at noise level sigmas[0] and ends at
sigmas[-1], which may be 0. The caller owns the progress bar: a sampler yields its steps. Numbers are floats of Python,
so that `x` may be an array of any kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gm.diffusion import registry

Denoise = Callable[[Any, float, int], Any]  # noisy latents, their σ, the step → denoised latents


@dataclass(frozen=True)
class NoiseSampler:
    """The noise that a sampler draws anew: `sample(step)` is standard normal noise like x, and how much of it."""

    sample: Callable[[int], Any]
    eta: float = 1.0
    s_noise: float = 1.0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf


Sampler = Callable[[Denoise, Any, np.ndarray, NoiseSampler], Iterator[Any]]


def euler(denoise: Denoise, x: Any, sigmas: np.ndarray, fresh: NoiseSampler) -> Iterator[Any]:
    """Euler's method on the probability-flow equation dx/dσ = (x - D(x, σ)) / σ (Karras et al., 2022, algorithm 2)."""
    for step, (sigma, following) in enumerate(_steps(sigmas)):
        x, sigma = _churned(x, sigma, step, len(sigmas) - 1, fresh)
        x = x + (x - denoise(x, sigma, step)) / sigma * (following - sigma)
        yield x


def euler_ancestral(denoise: Denoise, x: Any, sigmas: np.ndarray, fresh: NoiseSampler) -> Iterator[Any]:
    """Euler's method a little too far down, and noise back up: DDPM's reverse step (Ho et al., 2020) for η = 1."""
    for step, (sigma, following) in enumerate(_steps(sigmas)):
        down, up = _ancestral(sigma, following, fresh.eta)
        x = x + (x - denoise(x, sigma, step)) / sigma * (down - sigma)
        yield (x := _noised(x, up, step, fresh))


def heun(denoise: Denoise, x: Any, sigmas: np.ndarray, fresh: NoiseSampler) -> Iterator[Any]:
    """Euler's step, corrected by the slope at its end (Karras et al., 2022, algorithm 2); two evaluations a step."""
    for step, (sigma, following) in enumerate(_steps(sigmas)):
        x, sigma = _churned(x, sigma, step, len(sigmas) - 1, fresh)
        slope = (x - denoise(x, sigma, step)) / sigma
        end = x + slope * (following - sigma)
        if following > 0:
            slope = (slope + (end - denoise(end, following, step)) / following) / 2
        yield (x := x + slope * (following - sigma))


def lms(denoise: Denoise, x: Any, sigmas: np.ndarray, fresh: NoiseSampler) -> Iterator[Any]:
    """The linear multistep method of Adams and Bashforth over up to four slopes, for uneven steps."""
    slopes: list[Any] = []
    for step, (sigma, following) in enumerate(_steps(sigmas)):
        slopes = [*slopes[-3:], (x - denoise(x, sigma, step)) / sigma]
        levels = sigmas[step + 1 - len(slopes) : step + 1]
        for index, slope in enumerate(slopes):
            x = x + slope * _lagrange_integral(levels, index, sigma, following)
        yield x


def dpmpp_2s_ancestral(denoise: Denoise, x: Any, sigmas: np.ndarray, fresh: NoiseSampler) -> Iterator[Any]:
    """DPM-Solver++(2S) (Lu et al., 2022b, algorithm 1, r = 1/2), ancestral; two evaluations a step."""
    for step, (sigma, following) in enumerate(_steps(sigmas)):
        down, up = _ancestral(sigma, following, fresh.eta)
        clean = denoise(x, sigma, step)
        if down > 0:
            between = math.sqrt(sigma * down)
            clean = denoise(_exponential(x, clean, sigma, between), between, step)
        x = _exponential(x, clean, sigma, down)
        yield (x := _noised(x, up, step, fresh))


def dpmpp_2m(denoise: Denoise, x: Any, sigmas: np.ndarray, fresh: NoiseSampler) -> Iterator[Any]:
    """DPM-Solver++(2M) (Lu et al., 2022b, algorithm 2); the last step down to 0 is of first order."""
    before, length = None, 0.0
    for step, (sigma, following) in enumerate(_steps(sigmas)):
        clean = guess = denoise(x, sigma, step)
        if following > 0:
            h = math.log(sigma / following)
            if before is not None:
                guess = clean + (clean - before) * (h / (2 * length))
            length = h
        before = clean
        yield (x := _exponential(x, guess, sigma, following))


def dpmpp_2m_sde(denoise: Denoise, x: Any, sigmas: np.ndarray, fresh: NoiseSampler) -> Iterator[Any]:
    """SDE-DPM-Solver++(2M) (Lu et al., 2022b, section 5), its midpoint form, with `eta` of the noise."""
    before, length = None, 0.0
    for step, (sigma, following) in enumerate(_steps(sigmas)):
        clean = denoise(x, sigma, step)
        if following == 0:
            yield (x := clean)
            continue
        h = math.log(sigma / following)
        share = -math.expm1(-h * (1 + fresh.eta))  # of the guess in the next x
        guess = clean if before is None else clean + (clean - before) * (h / (2 * length))
        before, length = clean, h
        x = x * (following / sigma * math.exp(-fresh.eta * h)) + guess * share
        yield (x := _noised(x, following * math.sqrt(-math.expm1(-2 * fresh.eta * h)), step, fresh))


def lcm(denoise: Denoise, x: Any, sigmas: np.ndarray, fresh: NoiseSampler) -> Iterator[Any]:
    """Guess, and noise the guess again: the sampling of latent consistency models (Luo et al., 2023, algorithm 3)."""
    for step, (sigma, following) in enumerate(_steps(sigmas)):
        x = denoise(x, sigma, step)
        yield (x := _noised(x, following, step, fresh))


SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "lms": lms,
    "lcm": lcm,
}
# The names that users of AUTOMATIC1111 know, which are those of the recipes too.
TITLES = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "lms": "LMS",
    "lcm": "LCM",
}
# The names that mindone's users know.
ALIASES = {
    "EulerEDMSampler": "euler",
    "EulerAncestralSampler": "euler_ancestral",
    "HeunEDMSampler": "heun",
    "DPMPP2SAncestralSampler": "dpmpp_2s_ancestral",
    "DPMPP2MSampler": "dpmpp_2m",
    "LinearMultistepSampler": "lms",
    **{title: name for name, title in TITLES.items()},
}


def by_name(name: str) -> str:
    """Return the name in `SAMPLERS` that `name` stands for; UserError lists the known ones."""
    return registry.resolve("sampler", name, SAMPLERS, ALIASES)


def _steps(sigmas: np.ndarray) -> Iterator[tuple[float, float]]:
    """Return (noise level, the next one) of each step."""
    return zip(map(float, sigmas[:-1]), map(float, sigmas[1:]), strict=True)


def _churned(x: Any, sigma: float, step: int, steps: int, fresh: NoiseSampler) -> tuple[Any, float]:
    """Return `x` with more noise, as `s_churn` asks for, and its level (Karras et al., 2022, algorithm 2)."""
    gamma = min(fresh.s_churn / steps, math.sqrt(2) - 1) if fresh.s_tmin <= sigma <= fresh.s_tmax else 0.0
    raised = sigma * (1 + gamma)
    return _noised(x, math.sqrt(raised**2 - sigma**2), step, fresh), raised


def _ancestral(sigma: float, following: float, eta: float) -> tuple[float, float]:
    """Return the level to go down to, and the level of fresh noise that leads from there up to `following`."""
    up = min(following, eta * following * math.sqrt(1 - (following / sigma) ** 2))
    return math.sqrt(following**2 - up**2), up


def _noised(x: Any, level: float, step: int, fresh: NoiseSampler) -> Any:
    level = level * fresh.s_noise
    return x + fresh.sample(step) * level if level > 0 else x


def _exponential(x: Any, clean: Any, sigma: float, following: float) -> Any:
    """Return x at level `following` if the clean latents stay the same on the way there: exact, unlike Euler's step."""
    share = following / sigma
    return x * share + clean * (1 - share)


def _lagrange_integral(levels: np.ndarray, index: int, start: float, end: float) -> float:
    """Return ∫ of the polynomial that is 1 at levels[index] and 0 at the others, from `start` to `end`."""
    others = np.delete(levels, index)
    whole = np.polynomial.Polynomial.fromroots(others).integ() if len(others) else np.polynomial.Polynomial([0.0, 1.0])
    return float((whole(end) - whole(start)) / np.prod(levels[index] - others))
