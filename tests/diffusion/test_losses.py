"""Losses of single errors, and weights of noise levels."""

import numpy as np
import pytest

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
