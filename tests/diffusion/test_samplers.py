"""Samplers on denoisers whose answer is known, beside k-diffusion's and diffusers'."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler
from diffusers.schedulers import scheduling_lcm

from gm.config import SamplingConfig
from gm.config.model import ScheduleConfig
from gm.diffusion import samplers, schedule
from gm.diffusion.samplers import SAMPLERS, NoiseSampler
from gm.errors import UserError
from tests.reference.inputs import relative_error
from tests.reference.k_diffusion import sampling as k_diffusion

SPREAD = 0.5
STOCHASTIC = ("euler_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m_sde", "lcm")
TRAINED = schedule.training_sigmas(ScheduleConfig())


def normal_data(x: Any, sigma: float) -> Any:
    """The best guess at data that is N(0, SPREAD²) seen under noise of level `sigma`."""
    return x * SPREAD**2 / (SPREAD**2 + sigma**2)


def two_heaps(x: np.ndarray, sigma: float) -> np.ndarray:
    """The best guess at data that is N(±1, SPREAD²): no linear function of x, and another one at each level."""
    spread = SPREAD**2 + sigma**2
    centre = np.tanh(x / spread)
    return centre + (x - centre) * SPREAD**2 / spread


def levels(steps: int, name: str = "legacy") -> np.ndarray:
    return schedule.sampling_sigmas(ScheduleConfig(), SamplingConfig(schedule=name, sample_step=steps))


def fresh(shape: tuple[int, ...] = (), **options: float) -> NoiseSampler:
    """Return the noise of a seed, another one each step."""
    return NoiseSampler(lambda step: np.random.default_rng(step).standard_normal(shape), **options)


@pytest.mark.parametrize(
    ("name", "order"),
    [("euler", 1), ("euler_ancestral", 1), ("heun", 2), ("dpmpp_2s_ancestral", 2), ("dpmpp_2m", 2), ("lms", 2)],
)
def test_without_fresh_noise_samplers_converge_at_their_order(name: str, order: int) -> None:
    # On even logarithmic levels down to a low one; the way from there to 0 is another matter.
    errors = []
    for steps in (40, 80, 160):
        sigmas = np.geomspace(10.0, 0.1, steps + 1)
        x = np.array([3.0])
        *_, end = SAMPLERS[name](normal_data, x, sigmas, fresh(eta=0.0))
        exact = x * ((SPREAD**2 + 0.1**2) / (SPREAD**2 + 10.0**2)) ** 0.5
        errors.append(float(abs(end - exact)[0]))
    gains = [np.log2(errors[0] / errors[1]), np.log2(errors[1] / errors[2])]
    assert min(gains) > order - 0.3, (errors, gains)
    assert errors[-1] < 0.02


@pytest.mark.parametrize("name", STOCHASTIC[:3])
def test_fresh_noise_keeps_the_spread_of_the_data(name: str) -> None:
    sigmas = levels(60, "karras")
    start = np.random.default_rng(99).standard_normal(20000) * sigmas[0]
    *_, end = SAMPLERS[name](normal_data, start, sigmas, fresh(start.shape))
    assert end.std() == pytest.approx(SPREAD, rel=0.1)  # 0.467 of Euler, which is of first order
    *_, calmer = SAMPLERS[name](normal_data, start, sigmas, fresh(start.shape, s_noise=0.8))
    assert calmer.std() < 0.95 * end.std()


@pytest.mark.parametrize("schedule_name", ["legacy", "karras"])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "lcm"])
def test_every_step_is_k_diffusions(name: str, schedule_name: str) -> None:
    sigmas = levels(9, schedule_name)
    shape = (2, 3, 4)
    x = np.random.default_rng(7).standard_normal(shape) * sigmas[0]
    options = {"eta": 0.7, "s_noise": 0.9} if name in STOCHASTIC else {}
    ours = list(SAMPLERS[name](two_heaps, x, sigmas, fresh(shape, **options)))
    drawn = iter(range(100))

    def model(theirs: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.tensor(two_heaps(theirs.numpy(), sigma[0].item()))

    seen: list[np.ndarray] = []
    if options:
        options["noise_sampler"] = lambda *_: torch.tensor(fresh(shape).draw(next(drawn)))  # type: ignore[assignment]
    end = getattr(k_diffusion, f"sample_{name}")(
        model, torch.tensor(x), torch.tensor(sigmas), disable=True, callback=lambda d: seen.append(d["x"]), **options
    )
    theirs = [x.numpy() for x in seen[1:]] + [end.numpy()]
    tolerance = 1e-4 if name == "lms" else 1e-9  # it integrates by numbers what is a polynomial
    assert [relative_error(a, b) for a, b in zip(ours, theirs, strict=True)] == pytest.approx([0] * 9, abs=tolerance)


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_churn_is_k_diffusions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sigmas, shape = levels(8, "karras"), (2, 3)
    x = np.random.default_rng(7).standard_normal(shape) * sigmas[0]
    options = {"s_churn": 3.0, "s_tmin": 0.2, "s_tmax": 9.0, "s_noise": 1.1}
    *_, ours = SAMPLERS[name](two_heaps, x, sigmas, fresh(shape, **options))
    *_, without = SAMPLERS[name](two_heaps, x, sigmas, fresh(shape))
    drawn = iter(range(100))  # k-diffusion draws in every step, used or not
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.tensor(fresh(shape).draw(next(drawn))))
    theirs = getattr(k_diffusion, f"sample_{name}")(
        lambda x, sigma: torch.tensor(two_heaps(x.numpy(), sigma[0].item())),
        torch.tensor(x),
        torch.tensor(sigmas),
        disable=True,
        **options,
    )
    assert relative_error(ours, theirs.numpy()) < 1e-9
    assert relative_error(ours, without) > 1e-2


def test_lcm_is_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    theirs.set_timesteps(4)
    times = theirs.timesteps.numpy()
    sigmas, shape = np.append(TRAINED[times], 0.0), (1, 2, 3)
    x = np.random.default_rng(3).standard_normal(shape) * sigmas[0]
    *_, ours = SAMPLERS["lcm"](two_heaps, x, sigmas, fresh(shape))
    state = torch.tensor(x / (sigmas[0] ** 2 + 1) ** 0.5)
    for step, time in enumerate(times):
        sigma = sigmas[step]
        seen = state.numpy() * (sigma**2 + 1) ** 0.5
        noise = torch.tensor((seen - two_heaps(seen, sigma)) / sigma)
        monkeypatch.setattr(
            scheduling_lcm, "randn_tensor", lambda shape, k=step, **_: torch.tensor(fresh(tuple(shape)).draw(k))
        )
        state = theirs.step(noise, time, state, return_dict=False)[0]
    assert relative_error(ours, state.numpy()) < 1e-5


@pytest.mark.parametrize(
    ("name", "scheduler", "options"),
    [
        ("euler", EulerDiscreteScheduler, {}),
        ("heun", HeunDiscreteScheduler, {}),
        ("dpmpp_2m", DPMSolverMultistepScheduler, {"final_sigmas_type": "zero"}),
    ],
)
def test_with_karras_levels_samplers_are_diffusers(name: str, scheduler: Any, options: dict[str, Any]) -> None:
    theirs = scheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", use_karras_sigmas=True, **options
    )
    theirs.set_timesteps(10)
    sigmas = levels(10, "karras")
    # diffusers keeps its levels in float32; Heun's come twice, but for the ends.
    found = np.array(list(dict.fromkeys(theirs.sigmas.numpy().tolist())))
    np.testing.assert_allclose(sigmas, found, rtol=1e-4)
    x = np.random.default_rng(3).standard_normal((1, 2, 3)) * sigmas[0]
    *_, ours = SAMPLERS[name](two_heaps, x, sigmas, fresh())
    # DPM-Solver's state is that of DDPM: x / (σ² + 1)^½.
    shrunk = name == "dpmpp_2m"
    state = torch.tensor(x / (sigmas[0] ** 2 + 1) ** 0.5 if shrunk else x)
    for k, time in enumerate(theirs.timesteps):
        theirs.scale_model_input(state, time)
        sigma = float(theirs.sigmas[k])
        seen = state.numpy() * ((sigma**2 + 1) ** 0.5 if shrunk else 1.0)
        state = theirs.step(torch.tensor((seen - two_heaps(seen, sigma)) / sigma), time, state).prev_sample
    assert relative_error(ours, state.numpy()) < 1e-4


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_yields_every_step_and_draws_at_most_once_in_each(name: str) -> None:
    sigmas, asked, drawn = levels(7), [], []

    def watched(x: np.ndarray, sigma: float) -> np.ndarray:
        asked.append(sigma)
        return normal_data(x, sigma)

    def draw(step: int) -> float:
        drawn.append(step)
        return 0.1

    assert len(list(SAMPLERS[name](watched, np.ones(1), sigmas, NoiseSampler(draw, s_churn=2.0)))) == 7
    assert set(sigmas[:-1].tolist()) <= set(asked) or name in ("euler", "heun")  # whose churn raises the levels
    assert len(asked) == (13 if name in ("heun", "dpmpp_2s_ancestral") else 7)
    assert drawn == sorted(set(drawn))
    assert bool(drawn) == (name not in ("dpmpp_2m", "lms"))


def test_names() -> None:
    assert samplers.by_name("EulerEDMSampler") == samplers.by_name("Euler") == samplers.by_name("euler") == "euler"
    assert samplers.by_name("DPM++ 2M SDE") == "dpmpp_2m_sde"
    assert set(samplers.TITLES) == set(SAMPLERS)
    assert set(samplers.ALIASES.values()) == set(SAMPLERS)
    with pytest.raises(UserError, match=r"unknown sampler 'eulr'; known are euler, .*; did you mean 'euler'"):
        samplers.by_name("eulr")


def test_fresh_is_what_the_options_say() -> None:
    names = {f.name for f in dataclasses.fields(NoiseSampler)} - {"draw"}
    assert names <= {f.name for f in dataclasses.fields(SamplingConfig)}
