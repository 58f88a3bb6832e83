"""Losses of single errors, and weights of noise levels."""

import numpy as np
import pytest

from gm.config import LossConfig
from gm.config.model import ScheduleConfig
from gm.diffusion import losses, schedule


def test_squared_error() -> None:
    assert losses.squared_error(np.array([3.0, -2.0])).tolist() == [9.0, 4.0]


@pytest.mark.parametrize("c", [0.01, 0.1, 3.0])
def test_pseudo_huber_is_square_for_small_and_straight_for_large_errors(c: float) -> None:
    error = np.linspace(-5, 5, 101)
    cost = losses.pseudo_huber(error, c)
    assert (cost <= error**2 + 1e-12).all()
    small = c / 100 * np.array([1.0, -1.0])
    np.testing.assert_allclose(losses.pseudo_huber(small, c), small**2, rtol=1e-4)
    large = 1000 * c * np.array([1.0, -1.0])
    np.testing.assert_allclose(losses.pseudo_huber(large, c), 2 * c * np.abs(large), rtol=2e-3)


@pytest.mark.reference
@pytest.mark.parametrize("c", [0.01, 0.1, 3.0])
def test_pseudo_huber_and_pytorchs_smooth_l1_loss_agree_for_large_errors(c: float) -> None:
    import torch

    error = np.linspace(-5, 5, 101)
    cost = losses.pseudo_huber(error, c)
    # Smooth L1, times 2c, has the same ends and another curve between them.
    ends = np.abs(error) > 30 * c
    smooth = 2 * c * torch.nn.functional.smooth_l1_loss(torch.tensor(error), torch.zeros(101), reduction="none", beta=c)
    np.testing.assert_allclose(cost[ends], smooth.numpy()[ends], rtol=0.02)


@pytest.mark.reference
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_equal_those_of_diffusers_script(gamma: float) -> None:
    import torch
    from diffusers.training_utils import compute_snr

    from tests.reference.configs import CONFIGS
    from tests.reference.loops import scheduler

    times = torch.arange(1000)
    model = next(iter(CONFIGS.values()))
    snr = compute_snr(scheduler(model), times)
    expected = torch.minimum(snr, torch.full_like(snr, gamma)) / snr
    weights = losses.min_snr_weights(schedule.training_sigmas(ScheduleConfig()), gamma)
    np.testing.assert_allclose(weights, expected.numpy(), rtol=1e-3)
    assert weights[0] < 0.01 * gamma
    assert weights[-1] == 1.0


def test_without_gamma_all_weights_are_1() -> None:
    assert losses.min_snr_weights(np.array([0.1, 3.0]), 0.0).tolist() == [1.0, 1.0]


SIGMAS = schedule.training_sigmas(ScheduleConfig(prediction="v_prediction", rescale_betas_zero_snr=True))
SNR = 1 / SIGMAS**2


def test_min_snr_weights_of_v() -> None:
    """Those of diffusers' and kohya's scripts; they vanish with the SNR, as the error of denoised latents counts."""
    weights = losses.min_snr_weights(SIGMAS, 5.0, "v_prediction")
    np.testing.assert_allclose(weights, np.minimum(SNR, 5.0) / (SNR + 1), rtol=1e-9)
    assert weights[-1] == pytest.approx(0, abs=1e-6)
    assert losses.min_snr_weights(SIGMAS, 0.0, "v_prediction").tolist() == [1.0] * 1000


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_the_error_of_the_denoised_latents_alike_for_noise_and_v(gamma: float) -> None:
    # |v error|² = (SNR + 1)·|x error|² and |ε error|² = SNR·|x error|²
    of_v = losses.min_snr_weights(SIGMAS, gamma, "v_prediction") * (SNR + 1)
    of_noise = losses.min_snr_weights(SIGMAS, gamma, "epsilon") * SNR
    np.testing.assert_allclose(of_v, of_noise, rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "prediction", "expected"),
    [
        ({}, "v_prediction", np.ones(1000)),
        ({"scale_v_pred_loss_like_noise_pred": True}, "v_prediction", SNR.clip(max=1000) / (SNR.clip(max=1000) + 1)),
        ({"scale_v_pred_loss_like_noise_pred": True}, "epsilon", np.ones(1000)),
        ({"debiased_estimation_loss": True}, "v_prediction", 1 / (SNR.clip(max=1000) + 1)),
        ({"debiased_estimation_loss": True}, "epsilon", 1 / SNR.clip(max=1000) ** 0.5),
        (
            {"debiased_estimation_loss": True, "scale_v_pred_loss_like_noise_pred": True, "min_snr_gamma": 2.0},
            "v_prediction",
            np.minimum(SNR, 2) / (SNR + 1) * SNR.clip(max=1000) / (SNR.clip(max=1000) + 1) ** 2,
        ),
    ],
)
def test_weights_of_timesteps_are_kohyas_and_multiply(
    options: dict[str, float], prediction: str, expected: np.ndarray
) -> None:
    weights = losses.timestep_weights(SIGMAS, LossConfig(**options), prediction)  # type: ignore[arg-type]
    np.testing.assert_allclose(weights, expected, rtol=1e-9)
    assert np.isfinite(weights).all()


def test_the_loss_of_v_scaled_like_noise_is_the_loss_of_the_noise_that_it_implies() -> None:
    sigma, error_of_v = 1.7, 0.3
    weight = losses.timestep_weights(
        np.array([sigma]), LossConfig(scale_v_pred_loss_like_noise_pred=True), "v_prediction"
    )
    a = 1 / (sigma**2 + 1) ** 0.5  # ε = a·v + s·x
    assert weight[0] * error_of_v**2 == pytest.approx((a * error_of_v) ** 2)
