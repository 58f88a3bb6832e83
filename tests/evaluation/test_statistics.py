"""Confidence intervals of means over prompts and seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gm.evaluation.statistics import estimate, t_quantile


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (10, 2.2281), (30, 2.0423), (75, 1.9921), (1e4, 1.9602)],
)
def test_quantiles_are_those_of_the_table(degrees: float, expected: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(expected, rel=2e-4)


def test_quantile_of_other_confidences() -> None:
    assert t_quantile(0.95, 5) == pytest.approx(2.0150, rel=2e-4)
    assert t_quantile(0.995, 5) == pytest.approx(4.0321, rel=2e-4)


def test_interval_of_one_prompt_is_that_of_students_t() -> None:
    values = np.array([[0.2, 0.5, 0.3, 0.6]])
    result = estimate(values, 0.95)
    half = 3.1824 * values.std(ddof=1) / 2
    assert result.mean == pytest.approx(0.4)
    assert (result.low, result.high) == pytest.approx((0.4 - half, 0.4 + half), rel=1e-3)


def test_what_prompts_have_in_common_widens_no_interval() -> None:
    noise = np.random.default_rng(0).normal(size=(25, 4))
    result, shifted = (estimate(noise + shift, 0.95) for shift in (0.0, np.arange(25.0)[:, None]))
    assert result.low is not None
    assert shifted.low is not None
    assert shifted.mean - shifted.low == pytest.approx(result.mean - result.low)
    degrees = 75  # at most; about as many where the variances are alike
    assert result.mean - result.low > t_quantile(0.975, degrees) * math.sqrt(noise.var(axis=1, ddof=1).mean() / 100)


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        result = estimate(random.normal(size=(5, 3)), 0.9)
        assert result.low is not None
        assert result.high is not None
        held += result.low <= 0 <= result.high
    assert 0.86 < held / 400 < 0.96


def test_one_seed_has_no_interval_and_equal_values_an_empty_one() -> None:
    assert (estimate(np.array([[0.1], [0.3]]), 0.95).low, estimate(np.array([[0.1], [0.3]]), 0.95).mean) == (None, 0.2)
    same = estimate(np.full((2, 3), 0.5), 0.95)
    assert (same.low, same.high) == (0.5, 0.5)
