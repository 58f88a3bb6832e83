"""gm/checkpoints/prediction_check.py: a wrong setting of what the UNet predicts is noticed when it is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm import api
from gm import config as configuration
from gm.checkpoints import containers, loading, prediction_check
from gm.checkpoints.prediction_check import check_prediction, detect_prediction
from gm.config.model import ModelConfig, ScheduleConfig
from gm.diffusion.schedule import training_sigmas
from gm.errors import UserError
from gm.models import stable_diffusion
from tests.checkpoints.files import lazy
from tests.reference.case import Case

EPSILON = ScheduleConfig()
V_PREDICTION = ScheduleConfig(prediction="v_prediction")
ZERO_SNR = dataclasses.replace(V_PREDICTION, rescale_betas_zero_snr=True)


def ideal(config: ModelConfig, predicts: str, std: float, mean: float = 0.0) -> Any:
    """Return a model whose UNet is the best possible one for latents of independent values N(mean, std²)."""
    sigmas = training_sigmas(config.schedule)

    def unet(x: Tensor, timesteps: Tensor, *_: Any) -> Tensor:
        sigma = sigmas[timesteps.asnumpy().astype(int)][:, None, None, None]
        a = 1 / (sigma**2 + 1) ** 0.5
        s = sigma * a
        # The posterior mean of x₀ given a·x₀ + s·ε.
        latents = mean + a * std**2 / (a**2 * std**2 + s**2) * (x.asnumpy() - a * mean)
        epsilon = (x.asnumpy() - a * latents) / s
        return Tensor((epsilon if predicts == "epsilon" else a * epsilon - s * latents).astype(np.float32))

    return SimpleNamespace(config=config, unet=unet)


@pytest.mark.parametrize("schedule", [EPSILON, V_PREDICTION, ZERO_SNR], ids=["epsilon", "v", "zero SNR"])
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("std", [0.01, 0.3, 0.7])
@pytest.mark.parametrize("mean", [0.0, 0.2])
def test_ideal_networks_are_told_apart(
    cases: Callable[[str], Case], schedule: ScheduleConfig, predicts: str, std: float, mean: float
) -> None:
    config = dataclasses.replace(cases("like-sd1").config, schedule=schedule)
    model = ideal(config, predicts, std, mean)
    assert detect_prediction(model) == predicts
    if predicts == schedule.prediction:
        check_prediction(model, "a.ckpt")
        return
    with pytest.raises(UserError) as caught:
        check_prediction(model, "a.ckpt")
    text = str(caught.value)
    assert text.startswith(
        f"a.ckpt predicts {'epsilon, the noise' if predicts == 'epsilon' else 'v, the velocity'}, but"
    )
    remedy = f"give a --config with model.schedule.prediction {predicts}"
    assert text.endswith(
        remedy + (" and without model.schedule.rescale_betas_zero_snr" if schedule == ZERO_SNR else "")
    )


def test_the_tiny_model_predicts_epsilon(toolkit: api.Toolkit) -> None:
    assert detect_prediction(toolkit.model) == "epsilon"
    share, correlation = prediction_check.noise_in_output(toolkit.model)
    assert abs(share - 1) < 0.05
    assert correlation > 0.95


@pytest.mark.parametrize("name", ["like-base", "reversed", "deep", "refiner", "like-sd1", "like-sd2", "small-sd1"])
def test_networks_that_are_not_trained_pass(cases: Callable[[str], Case], name: str) -> None:
    case = cases(name)
    check_prediction(case.model, "a.ckpt")
    constant = SimpleNamespace(config=case.config, unet=lambda x, *_: Tensor(np.zeros(x.shape, np.float32)))
    constant.conditioner = case.model.conditioner
    check_prediction(constant, "a.ckpt")  # type: ignore[arg-type]


def test_a_device_that_cannot_run_the_check_ends_nothing(
    cases: Callable[[str], Case], caplog: pytest.LogCaptureFixture
) -> None:
    def unet(*_: Any) -> Tensor:
        raise RuntimeError("Launch kernel failed\n- C++ Call Stack")

    check_prediction(SimpleNamespace(config=cases("like-sd1").config, unet=unet), "a.ckpt")
    assert "what a.ckpt predicts was not checked: Launch kernel failed - C++ Call Stack" in caplog.text


def test_loading_the_tiny_model_as_one_that_predicts_v_is_refused(tmp_path: Path) -> None:
    weight = "checkpoints/tiny_sd_xl_base.safetensors"
    model = {"schedule": {"prediction": "v_prediction"}}
    run = {"weight": weight, "device_target": "CPU", "ms_mode": 1}
    with pytest.raises(
        UserError, match=rf"{weight} predicts epsilon, the noise, but the config describes .* predicts v,"
    ):
        api.load("configs/training/tiny_textual_inversion.yaml", model=model, run=run)


def test_weights_alone_are_enough_to_load() -> None:
    toolkit = api.load(run={"weight": "checkpoints/tiny_sd_xl_base.safetensors", "device_target": "CPU", "ms_mode": 1})
    assert toolkit.config.model == configuration.load("configs/training/tiny_textual_inversion.yaml").model
    with pytest.raises(UserError, match="give the path of a YAML file, or the weights alone"):
        api.load()


@pytest.mark.reference
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_networks_trained_for_a_moment_are_told_apart(
    cases: Callable[[str], Case], tmp_path: Path, predicts: str
) -> None:
    """The smallest UNet, trained by diffusers on smooth latents."""
    import torch

    case = cases("small-sd1")
    torch.manual_seed(0)
    unet = type(case.reference.unet).from_config(case.reference.unet.config)
    optimizer = torch.optim.Adam(unet.parameters(), lr=3e-3)
    sigmas = torch.from_numpy(training_sigmas(EPSILON))
    context = torch.zeros(4, case.config.context_length, case.config.unet.context_dim)
    for _ in range(200):
        latents = 0.5 * torch.randn(4, 4, 1, 1).expand(4, 4, 8, 8)
        noise = torch.randn(4, 4, 8, 8)
        timesteps = torch.randint(1000, (4,))
        sigma = sigmas[timesteps].float()[:, None, None, None]
        a = 1 / (sigma**2 + 1) ** 0.5
        target = noise if predicts == "epsilon" else a * (noise - sigma * latents)
        loss = ((unet(a * (latents + sigma * noise), timesteps, context).sample - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unet.save_pretrained(tmp_path / "unet")
    containers.write(tmp_path / "a.safetensors", lazy(case.weights))
    files = loading.WeightFiles(tmp_path / "a.safetensors", {"unet": tmp_path / "unet"})
    for schedule in (EPSILON, V_PREDICTION):
        model = stable_diffusion.build(dataclasses.replace(case.config, schedule=schedule), ms.float32)
        loading.load_weights(model, files, model.config)
        assert detect_prediction(model) == predicts
