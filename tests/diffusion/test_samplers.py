"""Samplers on a denoiser whose answer is known: data that is normal with a known spread."""

import numpy as np
import pytest

from gm.diffusion import samplers, schedule
from gm.errors import UserError
from gm.model_config import ScheduleConfig

SPREAD = 0.5


def denoise(x: np.ndarray, sigma: float, time: int) -> np.ndarray:
    """The best guess at data that is N(0, SPREAD²) seen under noise of level `sigma`."""
    return x * SPREAD**2 / (SPREAD**2 + sigma**2)


def walk(name: str, steps: int) -> float:
    """Return how far the end lies from the exact flow, x·SPREAD / (SPREAD² + σ₀²)^½, relative to it."""
    sigmas, times = schedule.sampling_levels(ScheduleConfig(), steps)
    x = np.array([sigmas[0]])
    *_, end = samplers.by_name(name)(denoise, x, sigmas, times)
    exact = x * SPREAD / (SPREAD**2 + sigmas[0] ** 2) ** 0.5
    return float(abs(end - exact)[0] / exact[0])


def test_euler_converges_at_first_order() -> None:
    errors = [walk("euler", steps) for steps in (25, 50, 100)]
    assert errors[2] < 0.05
    assert 1.5 < errors[0] / errors[1] < 2.6
    assert 1.5 < errors[1] / errors[2] < 2.6


def test_a_sampler_yields_every_step_and_asks_at_every_level() -> None:
    sigmas, times = schedule.sampling_levels(ScheduleConfig(), 7)
    asked = []

    def watched(x: np.ndarray, sigma: float, time: int) -> np.ndarray:
        asked.append((sigma, time))
        return denoise(x, sigma, time)

    assert len(list(samplers.euler(watched, np.ones(1), sigmas, times))) == 7
    assert asked == list(zip(sigmas[:-1].tolist(), times.tolist(), strict=True))


def test_mindones_names_are_known_and_unknown_ones_are_named() -> None:
    assert samplers.by_name("EulerEDMSampler") is samplers.euler
    with pytest.raises(
        UserError, match=r"unknown sampler 'eulr'; known are euler, EulerEDMSampler; did you mean 'euler'"
    ):
        samplers.by_name("eulr")
