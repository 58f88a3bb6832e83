"""Interpolation of embedding vectors on the sphere (slerp), vector by vector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_SMALL_SINE = 1e-6  # of an angle below which the great circle is a straight line
_ITERATIONS = 100
_TOLERANCE = 1e-12  # radians


def slerp(start: np.ndarray, end: np.ndarray, fraction: float) -> np.ndarray:
    """Return the points at `fraction` of the great circles from `start` to `end`, float64 [n, width].

    Rows of both [n, width] have the same norm (Shoemake, 1985, "Animating rotation with quaternion curves"). Parallel
    and opposite vectors are joined by a straight line.
    """
    start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
    norms = np.linalg.norm(start, axis=1, keepdims=True) * np.linalg.norm(end, axis=1, keepdims=True)
    cosine = np.clip((start * end).sum(1, keepdims=True) / np.where(norms > 0, norms, 1.0), -1.0, 1.0)
    angle = np.arccos(cosine)
    sine = np.sin(angle)
    straight = sine < _SMALL_SINE
    divisor = np.where(straight, 1.0, sine)
    weight_start = np.where(straight, 1.0 - fraction, np.sin((1.0 - fraction) * angle) / divisor)
    weight_end = np.where(straight, fraction, np.sin(fraction * angle) / divisor)
    return np.asarray(weight_start * start + weight_end * end)


def spherical_mean(vectors: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Return the weighted mean directions of arrays [n, width], float64 [n, width] of norm 1.

    Of two arrays it is their slerp; of more, the point from which the weighted sum of the ways to all is zero (Buss &
    Fillmore, 2001, "Spherical averages and applications to spherical splines and interpolation", algorithm A1). The
    weights are divided by their sum. Raises ValueError for a zero vector, for vectors that lie opposite each other, and
    where there is no such point.
    """
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    arrays = [np.asarray(each, np.float64) for each in vectors]
    norms = [np.linalg.norm(each, axis=1, keepdims=True) for each in arrays]
    if any((norm == 0).any() for norm in norms):
        raise ValueError("a vector of zeros")
    directions = [each / norm for each, norm in zip(arrays, norms, strict=True)]
    mean = directions[int(np.argmax(shares))]
    for _ in range(_ITERATIONS):
        step = np.sum([share * _way(mean, each) for share, each in zip(shares, directions, strict=True)], axis=0)
        angle = np.linalg.norm(step, axis=1, keepdims=True)
        mean = np.cos(angle) * mean + np.sin(angle) * step / np.where(angle > 0, angle, 1.0)
        mean = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        if angle.max() < _TOLERANCE:
            return mean
    raise ValueError("no mean of these directions")


def _way(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the tangents at unit vectors `start` along which the unit vectors `end` lie, as long as the angles."""
    cosine = (start * end).sum(1, keepdims=True)
    tangent = end - cosine * start
    sine = np.linalg.norm(tangent, axis=1, keepdims=True)
    if ((sine < _SMALL_SINE) & (cosine < 0)).any():
        raise ValueError("vectors that lie opposite each other")
    return np.arctan2(sine, cosine) * tangent / np.where(sine > 0, sine, 1.0)
