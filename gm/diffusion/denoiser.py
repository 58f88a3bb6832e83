"""Parameterization of the network: it takes scaled noisy latents and predicts their noise ε (sgm's `EpsScaling`)."""

from __future__ import annotations

from typing import Any


def add_noise(latents: Any, noise: Any, sigma: Any) -> Any:
    """Return latents at noise level σ: x + σ·n."""
    return latents + sigma * noise


def scale_model_input(x: Any, sigma: Any) -> Any:
    """Return noisy latents scaled to unit variance: x / (σ² + 1)^½."""
    return x / (sigma * sigma + 1.0) ** 0.5


def predict_denoised(x: Any, epsilon: Any, sigma: Any) -> Any:
    """Return the denoised latents that the predicted noise implies: x - σ·ε."""
    return x - sigma * epsilon


def loss(epsilon: Any, noise: Any) -> Any:
    """Return the mean squared error of the predicted noise, a scalar."""
    error = epsilon - noise
    return (error * error).mean()
