"""Noise schedule compared with the published numbers, diffusers and k-diffusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gm import config as configuration
from gm.config import SamplingConfig
from gm.config.model import ScheduleConfig
from gm.diffusion import schedule
from gm.errors import UserError

TRAINED = schedule.training_sigmas(ScheduleConfig())


def sampling_sigmas(steps: int, config: ScheduleConfig | None = None, **options: Any) -> np.ndarray:
    return schedule.sampling_sigmas(config or ScheduleConfig(), SamplingConfig(sample_step=steps, **options))


def test_training_sigmas_are_sdxls() -> None:
    np.testing.assert_allclose([TRAINED[0], TRAINED[-1]], [0.02917, 14.6146], rtol=2e-4)


@pytest.mark.reference
def test_training_sigmas_equal_diffusers() -> None:
    from diffusers import DDPMScheduler

    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    alphas_cumprod = reference.alphas_cumprod.numpy().astype(np.float64)
    np.testing.assert_allclose(1 / (TRAINED**2 + 1), alphas_cumprod, rtol=2e-5)


def test_legacy_sigmas_have_the_published_spacing() -> None:
    sigmas = sampling_sigmas(4)
    assert sigmas.tolist() == [*TRAINED[[999, 749, 499, 249]], 0.0]
    assert (
        sampling_sigmas(1, ScheduleConfig(timesteps=10))[0] == schedule.training_sigmas(ScheduleConfig(timesteps=10))[9]
    )


def test_timestep_of_a_sigma_is_its_index_and_clamped() -> None:
    assert schedule.sigma_to_timestep(TRAINED, TRAINED).tolist() == list(range(1000))
    assert schedule.sigma_to_timestep(TRAINED, np.array([1e-3, 99.0])).tolist() == [0, 999]


@pytest.mark.reference
def test_timesteps_between_two_sigmas_equal_diffusers() -> None:
    from diffusers import EulerDiscreteScheduler

    theirs = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", use_karras_sigmas=True
    )
    theirs.set_timesteps(11)
    np.testing.assert_allclose(
        schedule.sigma_to_timestep(TRAINED, sampling_sigmas(11, schedule="karras")[:-1]), theirs.timesteps, atol=0.01
    )


@pytest.mark.reference
def test_karras_and_edm_sigmas_equal_k_diffusion() -> None:
    from tests.reference.k_diffusion import sampling as k_diffusion

    karras = k_diffusion.get_sigmas_karras(12, TRAINED[0], TRAINED[-1]).numpy()
    np.testing.assert_allclose(sampling_sigmas(12, schedule="karras"), karras, rtol=1e-5)
    options = {"sigma_min": 0.1, "sigma_max": 10.0, "rho": 4.0}
    edm = k_diffusion.get_sigmas_karras(12, 0.1, 10.0, rho=4.0).numpy()
    np.testing.assert_allclose(sampling_sigmas(12, schedule="edm", **options), edm, rtol=1e-5)


def test_one_step_begins_at_the_highest_sigma() -> None:
    assert sampling_sigmas(1, schedule="karras").tolist() == pytest.approx([TRAINED[-1], 0.0])


def test_names_and_sigmas_that_do_not_fall() -> None:
    assert sampling_sigmas(5, schedule="EDMDiscretization").tolist() == sampling_sigmas(5, schedule="edm").tolist()
    assert sampling_sigmas(5, schedule="LegacyDDPMDiscretization").tolist() == sampling_sigmas(5).tolist()
    with pytest.raises(UserError, match=r"unknown schedule 'karas'; known are legacy, .*; did you mean 'karras'"):
        sampling_sigmas(5, schedule="karas")
    with pytest.raises(UserError, match=r"sigma_min is 3.0; it must be less than sigma_max, 2.0"):
        sampling_sigmas(5, schedule="edm", sigma_min=3.0, sigma_max=2.0)


def test_a_fraction_of_the_steps_is_rounded_down_as_it_is_written() -> None:
    assert [schedule.step_count(fraction, 100) for fraction in (0.29, 0.57, 0.58, 0.999, 1.0, 0.0)] == [
        29,
        57,
        58,
        99,
        100,
        0,
    ]


def test_zero_terminal_snr_needs_v_prediction() -> None:
    with pytest.raises(
        UserError, match=r"rescale_betas_zero_snr needs model.schedule.prediction v_prediction: at zero"
    ):
        ScheduleConfig(rescale_betas_zero_snr=True)
    with pytest.raises(UserError, match=r"rescale_betas_zero_snr needs at least 2 timesteps"):
        ScheduleConfig(timesteps=1, prediction="v_prediction", rescale_betas_zero_snr=True)
    options = {"model": {"schedule": {"prediction": "v"}}}
    with pytest.raises(UserError, match=r"model.schedule.prediction .*epsilon.*v_prediction"):
        configuration.load(overrides=options)
