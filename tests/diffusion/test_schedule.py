"""Noise levels against the published numbers and diffusers' scheduler."""

import numpy as np

from gm.diffusion import schedule
from gm.model_config import ScheduleConfig


def test_training_sigmas_are_sdxls() -> None:
    from diffusers import DDPMScheduler

    sigmas = schedule.training_sigmas(ScheduleConfig())
    np.testing.assert_allclose([sigmas[0], sigmas[-1]], [0.02917, 14.6146], rtol=2e-4)
    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    kept = reference.alphas_cumprod.numpy().astype(np.float64)
    np.testing.assert_allclose(1 / (sigmas**2 + 1), kept, rtol=2e-5)


def test_sampling_levels_follow_the_published_spacing() -> None:
    sigmas, times = schedule.sampling_levels(ScheduleConfig(), 4)
    assert times.tolist() == [999, 749, 499, 249]
    assert len(sigmas) == 5
    assert sigmas[-1] == 0
    np.testing.assert_array_equal(sigmas[:-1], schedule.training_sigmas(ScheduleConfig())[times])
    assert schedule.sampling_levels(ScheduleConfig(timesteps=10), 1)[1].tolist() == [9]
