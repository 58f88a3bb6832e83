"""DDIM, PLMS, the schedules leading and trailing, v-prediction and zero terminal SNR beside diffusers' schedulers.

Every step of 20, in float32, of a toy network that predicts ε or v; also from the middle of the schedule (img2img).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gm.config.model import ScheduleConfig
from gm.diffusion import denoiser, schedule
from gm.diffusion.samplers import SAMPLERS
from gm.errors import UserError
from tests.diffusion.toy_denoisers import TRAINED, ZERO_SNR, noise_sampler, sampling_sigmas, two_modes
from tests.reference.inputs import relative_error

STEPS = 20
SHAPE = (2, 3, 4)
TOLERANCE = 1e-4
V = ScheduleConfig(prediction="v_prediction")
MODELS = pytest.mark.parametrize("model", [ScheduleConfig(), V, ZERO_SNR], ids=["epsilon", "v", "zero-snr"])


def network(model_input: np.ndarray, sigma: float, prediction: str) -> np.ndarray:
    """Return the output of the ideal network for the data of `two_modes`, float32."""
    scale = (sigma**2 + 1.0) ** 0.5
    x = model_input.astype(np.float64) * scale
    noise = (x - two_modes(x, sigma)) / sigma
    output = noise if prediction == "epsilon" else (x / scale - two_modes(x, sigma) * scale) / sigma
    return output.astype(np.float32)


def ours(name: str, model: ScheduleConfig, spacing: str, x: np.ndarray, first: int = 0, **options: float) -> list[Any]:
    """Return the states after each step from `first` on, of unit variance as DDPM's, from noisy latents `x`."""

    def denoise(x: np.ndarray, sigma: float, step: int) -> np.ndarray:
        level = np.float32(sigma)
        output = network(denoiser.scale_model_input(x, level), sigma, model.prediction)
        return denoiser.predict_denoised(x, output, level, model.prediction)

    sigmas = levels(name, model, spacing)[first:]
    states = SAMPLERS[name](denoise, x, sigmas, noise_sampler(SHAPE, **{"eta": 0.0, **options}))
    return [x / (sigma**2 + 1) ** 0.5 for x, sigma in zip(states, sigmas[1:], strict=True)]


def levels(name: str, model: ScheduleConfig, spacing: str) -> np.ndarray:
    zero_snr = model.rescale_betas_zero_snr
    return sampling_sigmas(STEPS, spacing, zero_snr=zero_snr, sampler=name)


def start(sigma: float) -> np.ndarray:
    noise = np.random.default_rng(7).standard_normal(SHAPE)
    return np.asarray(noise * (sigma**2 + 1.0) ** 0.5, np.float32)


def scheduler(kind: str, model: ScheduleConfig, spacing: str, **options: Any) -> Any:
    import diffusers

    if model.rescale_betas_zero_snr:
        options["rescale_betas_zero_snr"] = True
    made = getattr(diffusers, kind)(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon" if kind == "PNDMScheduler" else model.prediction,
        timestep_spacing=spacing,
        steps_offset=1,
        **options,
    )
    made.set_timesteps(STEPS)
    return made


def theirs(made: Any, model: ScheduleConfig, x: np.ndarray, timesteps: Any, **options: Any) -> list[np.ndarray]:
    """Return the states of a scheduler of unit variance after each evaluation of the network.

    PNDM gets the noise that a predicted v implies, as in Stability AI's code (`plms.py`) and AUTOMATIC1111. By itself
    it would combine the v of several steps.
    """
    import torch

    sigmas = schedule.training_sigmas(model)
    state, states = torch.tensor(x), []
    for step, timestep in enumerate(timesteps):
        prediction = made.config.prediction_type
        output = torch.tensor(network(state.numpy(), float(sigmas[int(timestep)]), prediction))
        noise = {"variance_noise": torch.tensor(noise_sampler(SHAPE).sample(step)).float()} if options else {}
        state = made.step(output, timestep, state, **options, **noise).prev_sample
        states.append(state.numpy())
    return states


def assert_equal_steps(ours_: list[Any], theirs_: list[np.ndarray]) -> None:
    errors = [relative_error(a, b) for a, b in zip(ours_, theirs_, strict=True)]
    assert max(errors) < TOLERANCE, errors


@pytest.mark.reference
@MODELS
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 0.9])  # for 1 diffusers takes a negative root at zero terminal SNR
def test_ddim_equals_diffusers(model: ScheduleConfig, spacing: str, eta: float) -> None:
    made = scheduler("DDIMScheduler", model, spacing, set_alpha_to_one=False, clip_sample=False)
    x = start(levels("ddim", model, spacing)[0])
    expected = theirs(made, model, start(0.0), made.timesteps, eta=eta)
    assert_equal_steps(ours("ddim", model, spacing, x, eta=eta), expected)


@pytest.mark.reference
@pytest.mark.parametrize("model", [ScheduleConfig(), V], ids=["epsilon", "v"])  # its PNDM has no zero terminal SNR
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_plms_equals_diffusers_pndm(model: ScheduleConfig, spacing: str) -> None:
    made = scheduler("PNDMScheduler", model, spacing, skip_prk_steps=True, set_alpha_to_one=False)
    expected = theirs(made, model, start(0.0), made.timesteps)
    del expected[0]  # of the first evaluation of the first step
    assert_equal_steps(ours("plms", model, spacing, start(levels("plms", model, spacing)[0])), expected)


@pytest.mark.reference
@pytest.mark.parametrize("name", ["ddim", "plms"])
@pytest.mark.parametrize("strength", [0.3, 0.75])
def test_from_the_middle_of_the_schedule_steps_equal_diffusers(name: str, strength: float) -> None:
    first = STEPS - schedule.step_count(strength, STEPS)
    kind, options = {
        "ddim": ("DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False}),
        "plms": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    }[name]
    made = scheduler(kind, V, "leading", **options)
    timesteps = made.timesteps.tolist()
    if name == "plms":  # which evaluates its second timestep twice, wherever it begins
        del timesteps[1]
        timesteps = timesteps[: first + 2] + timesteps[first + 1 :]
    expected = theirs(made, V, start(0.0), timesteps[first:])[name == "plms" :]
    assert_equal_steps(ours(name, V, "leading", start(levels(name, V, "leading")[first]), first), expected)


@pytest.mark.reference
@MODELS
@pytest.mark.parametrize(
    ("name", "kind", "spacing", "options"),
    [
        ("euler", "EulerDiscreteScheduler", "leading", {}),
        ("euler", "EulerDiscreteScheduler", "trailing", {}),
        # Its leading spacing is that of one more step.
        ("dpmpp_2m", "DPMSolverMultistepScheduler", "trailing", {"final_sigmas_type": "zero"}),
    ],
)
def test_euler_and_dpmpp_2m_equal_diffusers(
    name: str, kind: str, spacing: str, options: dict[str, Any], model: ScheduleConfig
) -> None:
    import torch

    made = scheduler(kind, model, spacing, **options)
    sigmas = levels(name, model, spacing)
    np.testing.assert_allclose(made.sigmas.numpy(), sigmas, rtol=2e-5, atol=1e-6)
    is_scaled = name == "dpmpp_2m"
    x = start(sigmas[0])
    state, expected = torch.tensor(start(0.0) if is_scaled else x), []
    for step, timestep in enumerate(made.timesteps):
        model_input = made.scale_model_input(state, timestep).numpy()
        output = torch.tensor(network(model_input, float(sigmas[step]), model.prediction))
        state = made.step(output, timestep, state).prev_sample
        expected.append(state.numpy() / (1.0 if is_scaled else (sigmas[step + 1] ** 2 + 1) ** 0.5))
    assert_equal_steps(ours(name, model, spacing, x), expected)


@pytest.mark.reference
@MODELS
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 30, 50, 999])
def test_leading_and_trailing_are_diffusers(model: ScheduleConfig, spacing: str, steps: int) -> None:
    made = scheduler("DDIMScheduler", model, spacing)
    made.set_timesteps(steps)
    sigmas = sampling_sigmas(steps, spacing, zero_snr=model.rescale_betas_zero_snr)
    trained = schedule.training_sigmas(model)
    assert sigmas[:-1].tolist() == trained[made.timesteps.numpy()].tolist()
    assert sigmas[-1] == 0


@pytest.mark.reference
def test_zero_terminal_snr_equals_diffusers() -> None:
    alphas_cumprod = scheduler("DDIMScheduler", ZERO_SNR, "trailing").alphas_cumprod.numpy()
    ours_ = 1 / (schedule.training_sigmas(ZERO_SNR) ** 2 + 1)
    np.testing.assert_allclose(ours_[:-1], alphas_cumprod[:-1], rtol=1e-4)
    assert alphas_cumprod[-1] == 0
    assert ours_[-1] == pytest.approx(scheduler("EulerDiscreteScheduler", ZERO_SNR, "trailing").alphas_cumprod[-1])


def test_the_first_timestep_of_zero_terminal_snr_keeps_its_level() -> None:
    assert schedule.training_sigmas(ZERO_SNR)[0] == pytest.approx(TRAINED[0])


@pytest.mark.parametrize(("name", "most"), [("leading", 999), ("trailing", 1000)])
def test_more_steps_than_timesteps_are_refused(name: str, most: int) -> None:
    assert (np.diff(sampling_sigmas(most, name)) < 0).all()
    message = rf"--schedule {name} has at most {most} steps of this model; --sample_step is {most + 1}"
    with pytest.raises(UserError, match=message):
        sampling_sigmas(most + 1, name)


@pytest.mark.parametrize("name", ["ddim", "plms"])
@pytest.mark.parametrize("spacing", ["legacy", "leading", "trailing"])
def test_ddim_and_plms_end_at_the_lowest_trained_level(name: str, spacing: str) -> None:
    assert sampling_sigmas(20, spacing, sampler=name)[-1] == TRAINED[0]
    assert sampling_sigmas(20, spacing, sampler="euler")[-1] == 0
    for reaches_it in ("karras", "edm"):
        options = {"sigma_min": 0.01} if reaches_it == "edm" else {}
        sigmas = sampling_sigmas(20, reaches_it, sampler=name, **options)
        assert sigmas[-1] == 0
        assert (np.diff(sigmas) < 0).all()
