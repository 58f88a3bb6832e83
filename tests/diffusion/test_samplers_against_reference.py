"""Samplers compared with k-diffusion and diffusers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gm.diffusion.samplers import SAMPLERS
from tests.diffusion.toy_denoisers import TRAINED, noise_sampler, sampling_sigmas, two_modes
from tests.reference.inputs import relative_error

pytestmark = pytest.mark.reference

STOCHASTIC = ("euler_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m_sde", "lcm")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


# Imported when a test runs, so that a run without reference tests does not wait for PyTorch.
@pytest.fixture(scope="module")
def k_diffusion() -> Any:
    from tests.reference.k_diffusion import sampling

    return sampling


@pytest.mark.parametrize("schedule_name", ["legacy", "karras"])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("lcm", "ddim", "plms")])
def test_every_step_equals_k_diffusion(k_diffusion: Any, name: str, schedule_name: str) -> None:
    import torch

    sigmas = sampling_sigmas(9, schedule_name)
    shape = (2, 3, 4)
    x = np.random.default_rng(7).standard_normal(shape) * sigmas[0]
    options = {"eta": 0.7, "s_noise": 0.9} if name in STOCHASTIC else {}
    ours = list(SAMPLERS[name](two_modes, x, sigmas, noise_sampler(shape, **options)))
    steps = iter(range(100))

    def model(theirs: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.tensor(two_modes(theirs.numpy(), sigma[0].item()))

    seen: list[np.ndarray] = []
    if options:
        noise = noise_sampler(shape)
        options["noise_sampler"] = lambda *_: torch.tensor(noise.sample(next(steps)))  # type: ignore[assignment]
    end = getattr(k_diffusion, f"sample_{name}")(
        model, torch.tensor(x), torch.tensor(sigmas), disable=True, callback=lambda d: seen.append(d["x"]), **options
    )
    theirs = [x.numpy() for x in seen[1:]] + [end.numpy()]
    tolerance = 1e-4 if name == "lms" else 1e-9  # k-diffusion integrates a polynomial numerically
    assert [relative_error(a, b) for a, b in zip(ours, theirs, strict=True)] == pytest.approx([0] * 9, abs=tolerance)


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_churn_equals_k_diffusion(k_diffusion: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    sigmas = sampling_sigmas(8, "karras")
    shape = (2, 3)
    x = np.random.default_rng(7).standard_normal(shape) * sigmas[0]
    options = {"s_churn": 3.0, "s_tmin": 0.2, "s_tmax": 9.0, "s_noise": 1.1}
    *_, ours = SAMPLERS[name](two_modes, x, sigmas, noise_sampler(shape, **options))
    *_, without = SAMPLERS[name](two_modes, x, sigmas, noise_sampler(shape))
    steps = iter(range(100))  # k-diffusion samples noise in every step, used or not
    noise = noise_sampler(shape)
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.tensor(noise.sample(next(steps))))
    theirs = getattr(k_diffusion, f"sample_{name}")(
        lambda x, sigma: torch.tensor(two_modes(x.numpy(), sigma[0].item())),
        torch.tensor(x),
        torch.tensor(sigmas),
        disable=True,
        **options,
    )
    assert relative_error(ours, theirs.numpy()) < 1e-9
    assert relative_error(ours, without) > 1e-2


def test_lcm_equals_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from diffusers import LCMScheduler
    from diffusers.schedulers import scheduling_lcm

    theirs = LCMScheduler(**BETAS, clip_sample=False)
    theirs.set_timesteps(4)
    timesteps = theirs.timesteps.numpy()
    sigmas = np.append(TRAINED[timesteps], 0.0)
    shape = (1, 2, 3)
    x = np.random.default_rng(3).standard_normal(shape) * sigmas[0]
    *_, ours = SAMPLERS["lcm"](two_modes, x, sigmas, noise_sampler(shape))
    state = torch.tensor(x / (sigmas[0] ** 2 + 1) ** 0.5)
    for step, timestep in enumerate(timesteps):
        sigma = sigmas[step]
        unscaled = state.numpy() * (sigma**2 + 1) ** 0.5
        epsilon = torch.tensor((unscaled - two_modes(unscaled, sigma)) / sigma)
        monkeypatch.setattr(
            scheduling_lcm,
            "randn_tensor",
            lambda shape, step=step, **_: torch.tensor(noise_sampler(tuple(shape)).sample(step)),
        )
        state = theirs.step(epsilon, timestep, state, return_dict=False)[0]
    assert relative_error(ours, state.numpy()) < 1e-5


@pytest.mark.parametrize(
    ("name", "scheduler", "options"),
    [
        ("euler", "EulerDiscreteScheduler", {}),
        ("heun", "HeunDiscreteScheduler", {}),
        ("dpmpp_2m", "DPMSolverMultistepScheduler", {"final_sigmas_type": "zero"}),
    ],
)
def test_with_karras_sigmas_samplers_equal_diffusers(name: str, scheduler: str, options: dict[str, Any]) -> None:
    import diffusers
    import torch

    theirs = getattr(diffusers, scheduler)(**BETAS, use_karras_sigmas=True, **options)
    theirs.set_timesteps(10)
    sigmas = sampling_sigmas(10, "karras")
    # diffusers keeps its sigmas in float32; Heun's come twice, but for the ends.
    their_sigmas = np.array(list(dict.fromkeys(theirs.sigmas.numpy().tolist())))
    np.testing.assert_allclose(sigmas, their_sigmas, rtol=1e-4)
    x = np.random.default_rng(3).standard_normal((1, 2, 3)) * sigmas[0]
    *_, ours = SAMPLERS[name](two_modes, x, sigmas, noise_sampler())
    # DPM-Solver's state is that of DDPM: x / (σ² + 1)^½.
    is_scaled = name == "dpmpp_2m"
    state = torch.tensor(x / (sigmas[0] ** 2 + 1) ** 0.5 if is_scaled else x)
    for k, timestep in enumerate(theirs.timesteps):
        theirs.scale_model_input(state, timestep)
        sigma = float(theirs.sigmas[k])
        unscaled = state.numpy() * ((sigma**2 + 1) ** 0.5 if is_scaled else 1.0)
        epsilon = torch.tensor((unscaled - two_modes(unscaled, sigma)) / sigma)
        state = theirs.step(epsilon, timestep, state).prev_sample
    assert relative_error(ours, state.numpy()) < 1e-4
