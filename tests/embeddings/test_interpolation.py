"""Slerp and spherical means beside their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from gm.embeddings.interpolation import slerp, spherical_mean


def directions(seed: int, count: int = 4, width: int = 12) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, width))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def angle(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return np.arccos(np.clip((one * two).sum(1), -1, 1))


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 1.0])
def test_slerp_divides_the_angle_and_keeps_the_norm(fraction: float) -> None:
    start, end = directions(1), directions(2)
    point = slerp(3 * start, 3 * end, fraction)
    np.testing.assert_allclose(np.linalg.norm(point, axis=1), 3)
    np.testing.assert_allclose(angle(start, point / 3), fraction * angle(start, end), atol=1e-7)
    np.testing.assert_allclose(angle(end, point / 3), (1 - fraction) * angle(start, end), atol=1e-7)


def test_parallel_vectors_are_joined_by_a_line() -> None:
    start = directions(1)
    assert np.array_equal(slerp(start, start, 0.3), 0.7 * start + 0.3 * start)


@pytest.mark.parametrize("weights", [(0.7, 0.3), (7, 3), (1.2, -0.2)])
def test_the_mean_of_two_is_their_slerp(weights: tuple[float, float]) -> None:
    start, end = directions(1), directions(2)
    mean = spherical_mean([2 * start, 5 * end], weights)
    np.testing.assert_allclose(mean, slerp(start, end, weights[1] / sum(weights)), atol=1e-12)


def test_the_ways_from_the_mean_of_three_balance() -> None:
    center, weights = directions(4), (0.5, 0.3, 0.2)
    arrays = [center + 0.5 * directions(seed) for seed in (1, 2, 3)]
    mean = spherical_mean(arrays, weights)
    total = np.zeros_like(mean)
    for weight, array in zip(weights, arrays, strict=True):
        unit = array / np.linalg.norm(array, axis=1, keepdims=True)
        tangent = unit - (unit * mean).sum(1, keepdims=True) * mean
        total += weight * angle(unit, mean)[:, None] * tangent / np.linalg.norm(tangent, axis=1, keepdims=True)
    assert np.abs(total).max() < 1e-7
    np.testing.assert_allclose(spherical_mean(arrays[::-1], weights[::-1]), mean, atol=1e-9)  # whatever the order


@pytest.mark.parametrize(
    ("end", "message"), [(-directions(1), "opposite each other"), (0 * directions(1), "a vector of zeros")]
)
def test_directions_without_a_mean_are_refused(end: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spherical_mean([directions(1), end], (0.5, 0.5))
