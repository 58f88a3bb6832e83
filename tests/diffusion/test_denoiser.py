"""The parameterization by σ compared with DDPM's by ᾱ, and guidance."""

import numpy as np
import pytest

from gm.config.model import ScheduleConfig
from gm.diffusion import denoiser, guidance, schedule
from gm.errors import UserError
from gm.runtime import rng


def test_network_input_is_ddpms_noisy_latent() -> None:
    latents, noise, sigma = rng.normal((2, 4, 3, 3), 1, "x"), rng.normal((2, 4, 3, 3), 1, "n"), 1.7
    alpha_bar = 1 / (sigma**2 + 1)
    model_input = denoiser.scale_model_input(denoiser.add_noise(latents, noise, sigma), sigma)
    np.testing.assert_allclose(
        model_input, alpha_bar**0.5 * latents + (1 - alpha_bar) ** 0.5 * noise, rtol=1e-4, atol=1e-6
    )


def test_the_true_noise_gives_the_clean_latents() -> None:
    latents, noise = rng.normal((1, 4, 3, 3), 2, "x"), rng.normal((1, 4, 3, 3), 2, "n")
    np.testing.assert_allclose(
        denoiser.predict_denoised(denoiser.add_noise(latents, noise, 3.0), noise, 3.0), latents, atol=1e-5
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sigma", [1e-3, 0.3, 3.0, 40.0])
def test_the_target_of_training_gives_the_clean_latents(prediction: str, sigma: float) -> None:
    latents, noise = rng.normal((1, 4, 3, 3), 2, "x"), rng.normal((1, 4, 3, 3), 2, "n")
    target = denoiser.training_target(latents, noise, sigma, prediction)
    x = denoiser.add_noise(latents, noise, sigma)
    np.testing.assert_allclose(denoiser.predict_denoised(x, target, sigma, prediction), latents, atol=1e-4)
    np.testing.assert_array_equal(denoiser.training_input(latents, noise, sigma), denoiser.scale_model_input(x, sigma))


@pytest.mark.reference
@pytest.mark.parametrize("timestep", [0, 500, 998, 999])
def test_inputs_and_targets_of_zero_terminal_snr_equal_diffusers(timestep: int) -> None:
    import torch
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )
    config = ScheduleConfig(prediction="v_prediction", rescale_betas_zero_snr=True)
    sigma = np.float32(schedule.training_sigmas(config)[timestep])
    latents, noise = rng.normal((1, 4, 3, 3), 2, "x"), rng.normal((1, 4, 3, 3), 2, "n")
    tensors = torch.tensor(latents), torch.tensor(noise), torch.tensor([timestep])
    np.testing.assert_allclose(
        denoiser.training_input(latents, noise, sigma), theirs.add_noise(*tensors).numpy(), atol=2e-5
    )
    target = denoiser.training_target(latents, noise, sigma, "v_prediction")
    np.testing.assert_allclose(target, theirs.get_velocity(*tensors).numpy(), atol=2e-5)
    if timestep == 999:
        assert denoiser.training_input(latents, noise, sigma) is noise
        np.testing.assert_array_equal(target, -latents)


def test_at_zero_terminal_snr_the_denoised_latents_are_the_velocity_turned_round() -> None:
    noise, velocity = rng.normal((1, 4, 3, 3), 1, "n"), rng.normal((1, 4, 3, 3), 1, "v")
    sigma = np.float32(denoiser.TERMINAL_SIGMA)
    denoised = denoiser.predict_denoised(noise * sigma, velocity, sigma, "v_prediction")
    np.testing.assert_allclose(denoised, -velocity, atol=2e-3)


def test_loss_is_the_mean_square() -> None:
    assert denoiser.loss(np.array([1.0, 3.0]), np.array([0.0, 1.0])) == 2.5


def test_guidance_scale_1_is_conditional_and_0_unconditional() -> None:
    unconditional, conditional = np.array([1.0, 2.0]), np.array([3.0, 5.0])
    assert guidance.classifier_free_guidance(unconditional, conditional, 1.0).tolist() == [3.0, 5.0]
    assert guidance.classifier_free_guidance(unconditional, conditional, 0.0).tolist() == [1.0, 2.0]
    assert guidance.classifier_free_guidance(unconditional, conditional, 2.0).tolist() == [5.0, 8.0]


@pytest.mark.reference
def test_rescaled_guidance_equals_diffusers() -> None:
    import torch
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg

    guided, conditional = 3 * rng.normal((2, 4, 5, 6), 1, "g") + 1, rng.normal((2, 4, 5, 6), 1, "c")
    conditional[1] *= 2
    for phi in (0.0, 0.4, 1.0):
        theirs = rescale_noise_cfg(torch.tensor(guided), torch.tensor(conditional), phi).numpy()
        np.testing.assert_allclose(guidance.rescale_guidance(guided, conditional, phi), theirs, rtol=1e-5, atol=1e-6)


def test_guider_names_and_aliases() -> None:
    assert guidance.resolve_name("VanillaCFG") == "cfg"
    with pytest.raises(UserError, match="unknown guider 'cgf'; known are cfg, none, rescaled"):
        guidance.resolve_name("cgf")
