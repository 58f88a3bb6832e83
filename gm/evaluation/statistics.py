"""Means with confidence intervals of Student's t distribution, over images that were generated from several seeds.

The prompts are fixed and the images of one prompt differ in their noise alone, so that they are a sample of each prompt
(a stratified sample: Cochran, 1977, "Sampling techniques", chapter 5). With P prompts, n images each and the sample
variance s_p² of a prompt, the mean of all has the variance Σ s_p² / n / P², and its degrees of freedom follow from
Welch and Satterthwaite (Satterthwaite, 1946): (Σ v_p)² / Σ (v_p² / (n - 1)), where v_p = s_p² / n. So an interval says
what other seeds would give, not what other prompts would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_POINTS = 20001


@dataclass(frozen=True)
class Estimate:
    """A mean, and the interval that holds the mean over all seeds; without one (None) there was a single seed."""

    mean: float
    low: float | None = None
    high: float | None = None


def estimate(values: np.ndarray, confidence: float) -> Estimate:
    """Return the mean of values [prompts, seeds] with its interval of `confidence`, such as 0.95."""
    prompts, seeds = values.shape
    mean = float(values.mean())
    if seeds < 2:
        return Estimate(mean)
    variances = values.var(axis=1, ddof=1) / seeds
    total = float(variances.sum())
    if total == 0:
        return Estimate(mean, mean, mean)
    degrees = total**2 / float((variances**2 / (seeds - 1)).sum())
    half = t_quantile(0.5 + confidence / 2, degrees) * math.sqrt(total) / prompts
    return Estimate(mean, mean - half, mean + half)


def t_quantile(probability: float, degrees: float) -> float:
    """Return the quantile, for a `probability` from 0.5 to below 1, of Student's t with `degrees` of freedom.

    With t = √ν tan θ the density is proportional to cos^(ν-1) θ, which is summed by the trapezoidal rule.
    """
    theta = np.linspace(0.0, math.pi / 2, _POINTS)
    density = np.cos(theta) ** (degrees - 1) if degrees > 1 else np.ones_like(theta)
    steps = (density[1:] + density[:-1]) / 2
    share = np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
    return float(math.sqrt(degrees) * math.tan(float(np.interp(2 * probability - 1, share, theta))))
