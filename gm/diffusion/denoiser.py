"""Parameterization of the network: it takes scaled noisy latents and predicts ε or v, as `ScheduleConfig` says.

ε is the noise (sgm's `EpsScaling`), v the velocity a·ε - s·x (Salimans and Ho, 2022, "Progressive distillation for fast
sampling of diffusion models", appendix D; sgm's `VScaling`), where a = 1 / (σ² + 1)^½ and s = a·σ are the shares of
latents and noise in the scaled input.
"""

from __future__ import annotations

from typing import Any

# σ of the last timestep with zero terminal SNR, in place of infinity: that of ᾱ = 2⁻²⁴ in diffusers' samplers
# (`EulerDiscreteScheduler` and others), rounded to what float32 holds. ComfyUI and AUTOMATIC1111 use 4519.
TERMINAL_SIGMA = 4096.0


def add_noise(latents: Any, noise: Any, sigma: Any) -> Any:
    """Return latents at noise level σ: x + σ·n."""
    return latents + sigma * noise


def scale_model_input(x: Any, sigma: Any) -> Any:
    """Return noisy latents scaled to unit variance: x / (σ² + 1)^½."""
    return x / (sigma * sigma + 1.0) ** 0.5


def predict_denoised(x: Any, output: Any, sigma: Any, prediction: str = "epsilon") -> Any:
    """Return the denoised latents that the network's output implies: x - σ·ε, or x / (σ² + 1) - v·σ / (σ² + 1)^½."""
    if prediction == "v_prediction":
        variance = sigma * sigma + 1.0
        return x / variance - output * (sigma / variance**0.5)
    return x - sigma * output


def training_input(latents: Any, noise: Any, sigma: Any) -> Any:
    """Return the scaled input of a training sample; with zero terminal SNR the last is the noise alone."""
    if sigma >= TERMINAL_SIGMA:
        return noise
    return scale_model_input(add_noise(latents, noise, sigma), sigma)


def training_target(latents: Any, noise: Any, sigma: Any, prediction: str) -> Any:
    """Return the target of training for a sample: ε, or v = (ε - σ·x) / (σ² + 1)^½, at infinite σ -x."""
    if prediction == "epsilon":
        return noise
    if sigma >= TERMINAL_SIGMA:
        return -latents
    return scale_model_input(noise - sigma * latents, sigma)


def loss(epsilon: Any, noise: Any) -> Any:
    """Return the mean squared error of the predicted noise, a scalar."""
    error = epsilon - noise
    return (error * error).mean()
