"""Samplers on toy denoisers: order of convergence, noise, contract, names."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gm.config import SamplingConfig
from gm.diffusion import samplers
from gm.diffusion.sampler_steps import NoiseSampler
from gm.diffusion.samplers import SAMPLERS
from gm.errors import UserError
from tests.diffusion.toy_denoisers import STD, noise_sampler, normal_data, sampling_sigmas, two_modes


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("euler", 1),
        ("euler_ancestral", 1),
        ("heun", 2),
        ("dpmpp_2s_ancestral", 2),
        ("dpmpp_2m", 2),
        ("lms", 2),
        ("ddim", 1),
    ],
)
def test_without_noise_samplers_converge_at_their_order(name: str, order: int) -> None:
    # On evenly spaced logarithmic levels down to a low one; the last step to 0 has another order.
    errors = []
    for steps in (40, 80, 160):
        sigmas = np.geomspace(10.0, 0.1, steps + 1)
        x = np.array([3.0])
        *_, end = SAMPLERS[name](normal_data, x, sigmas, noise_sampler(eta=0.0))
        exact = x * ((STD**2 + 0.1**2) / (STD**2 + 10.0**2)) ** 0.5
        errors.append(float(abs(end - exact)[0]))
    orders = [np.log2(errors[0] / errors[1]), np.log2(errors[1] / errors[2])]
    assert min(orders) > order - 0.3, (errors, orders)
    assert errors[-1] < 0.02


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m_sde", "ddim"])
def test_noise_keeps_the_standard_deviation_of_the_data(name: str) -> None:
    sigmas = sampling_sigmas(60, "karras")
    start = np.random.default_rng(99).standard_normal(20000) * sigmas[0]
    *_, end = SAMPLERS[name](normal_data, start, sigmas, noise_sampler(start.shape))
    assert end.std() == pytest.approx(STD, rel=0.1)  # 0.467 of Euler, which is of first order
    *_, calmer = SAMPLERS[name](normal_data, start, sigmas, noise_sampler(start.shape, s_noise=0.8))
    assert calmer.std() < 0.95 * end.std()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_yields_every_step_and_samples_noise_at_most_once_in_each(name: str) -> None:
    sigmas = sampling_sigmas(7)
    denoise_sigmas: list[float] = []
    denoise_steps: list[int] = []
    noise_steps: list[int] = []

    def denoise(x: np.ndarray, sigma: float, step: int) -> np.ndarray:
        denoise_sigmas.append(sigma)
        denoise_steps.append(step)
        return normal_data(x, sigma)

    def sample(step: int) -> float:
        noise_steps.append(step)
        return 0.1

    assert len(list(SAMPLERS[name](denoise, np.ones(1), sigmas, NoiseSampler(sample, s_churn=2.0)))) == 7
    # The churn of Euler and Heun raises the levels.
    assert set(sigmas[:-1].tolist()) <= set(denoise_sigmas) or name in ("euler", "heun")
    assert len(denoise_sigmas) == (13 if name in ("heun", "dpmpp_2s_ancestral") else 8 if name == "plms" else 7)
    assert denoise_steps == sorted(denoise_steps)
    assert set(denoise_steps) == set(range(7))
    assert noise_steps == sorted(set(noise_steps))
    assert bool(noise_steps) == (name not in ("dpmpp_2m", "lms", "plms"))


def test_ddims_eta_is_that_of_the_ancestral_sampler() -> None:
    sigmas = sampling_sigmas(7)
    for eta in (0.0, 0.3, 1.0):
        noise = noise_sampler((3,), eta=eta)
        *_, ddim = SAMPLERS["ddim"](two_modes, 9 * np.ones(3), sigmas, noise)
        *_, ancestral = SAMPLERS["euler_ancestral"](two_modes, 9 * np.ones(3), sigmas, noise)
        np.testing.assert_allclose(ddim, ancestral, rtol=1e-9)


def test_one_step_of_plms_is_one_evaluation() -> None:
    (end,) = SAMPLERS["plms"](normal_data, np.ones(1), np.array([3.0, 1.0]), noise_sampler())
    (euler,) = SAMPLERS["euler"](normal_data, np.ones(1), np.array([3.0, 1.0]), noise_sampler())
    assert end == pytest.approx(euler)


@pytest.mark.parametrize("schedule_name", ["legacy", "trailing", "karras"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_from_zero_terminal_snr_every_sampler_reaches_the_data(name: str, schedule_name: str) -> None:
    """In float32, from pure noise: the distribution of the samples is that of the data, and no step amplifies it."""
    steps = 60
    sigmas = sampling_sigmas(steps, schedule_name, zero_snr=True)
    assert sigmas[0] == pytest.approx(4096)
    start = (np.random.default_rng(5).standard_normal(20000) * (sigmas[0] ** 2 + 1) ** 0.5).astype(np.float32)

    def denoise(x: np.ndarray, sigma: float, step: int) -> np.ndarray:
        return two_modes(x, np.float32(sigma)).astype(np.float32)

    def sample(step: int) -> np.ndarray:
        return np.random.default_rng(step).standard_normal(start.shape).astype(np.float32)

    states = list(SAMPLERS[name](denoise, start, sigmas, NoiseSampler(sample)))
    for x, sigma in zip(states, sigmas[1:], strict=True):
        assert x.std() == pytest.approx((sigma**2 + 1 + STD**2) ** 0.5, rel=0.25)
    assert x.mean() == pytest.approx(0.0, abs=0.05)
    assert np.abs(x).mean() == pytest.approx(1.0, abs=0.1) or name == "lcm"  # which is no solver


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "lcm"])
def test_the_first_step_from_zero_terminal_snr_begins_from_noise_alone(name: str) -> None:
    """Without added noise it ends at denoised + sigma_next·noise, the limit of all methods for infinite sigma."""
    noise = np.array([-1.5, 0.5, 2.0])
    sigmas = sampling_sigmas(20, "trailing", zero_snr=True)
    x = noise * (sigmas[0] ** 2 + 1) ** 0.5
    first = next(iter(SAMPLERS[name](lambda x, sigma, step: 0 * x + 0.7, x, sigmas, noise_sampler(eta=0.0))))
    np.testing.assert_allclose(first, 0.7 + sigmas[1] * noise, atol=0.01)


def test_names_and_aliases() -> None:
    assert {samplers.resolve_name(name) for name in ("EulerEDMSampler", "Euler", "euler")} == {"euler"}
    assert samplers.resolve_name("DPM++ 2M SDE") == "dpmpp_2m_sde"
    assert set(samplers.TITLES) == set(SAMPLERS)
    assert set(samplers.ALIASES.values()) == set(SAMPLERS)
    with pytest.raises(UserError, match=r"unknown sampler 'eulr'; known are euler, .*; did you mean 'euler'"):
        samplers.resolve_name("eulr")


def test_every_option_of_the_noise_sampler_is_a_sampling_option() -> None:
    names = {f.name for f in dataclasses.fields(NoiseSampler)} - {"sample"}
    assert names <= {f.name for f in dataclasses.fields(SamplingConfig)}
