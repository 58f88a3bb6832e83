"""Losses of the prediction, and the weights of the noise levels."""

from __future__ import annotations

from typing import Any

import numpy as np

from gm.config import LossConfig

_MAX_SNR = 1000.0  # kohya's limit, in `custom_train_functions`


def squared_error(error: Any) -> Any:
    """Return error², element by element."""
    return error * error


def pseudo_huber(error: Any, c: float) -> Any:
    """Return 2c((error² + c²)^½ - c), element by element (Charbonnier et al., 1997).

    It is error² where that is small compared with c², and 2c·|error| where it is large. The factor is that of kohya's
    `huber`, with which small errors cost as much as with `squared_error`.
    """
    return 2.0 * c * ((error * error + c * c) ** 0.5 - c)


def timestep_weights(sigmas: np.ndarray, config: LossConfig, prediction: str) -> np.ndarray:
    """Return the loss weight of each noise level: the product of those that `config` switches on."""
    weights = min_snr_weights(sigmas, config.min_snr_gamma, prediction)
    if config.scale_v_pred_loss_like_noise_pred and prediction == "v_prediction":
        weights = weights * _snr_share(sigmas)
    if config.debiased_estimation_loss:
        weights = weights * debiased_weights(sigmas, prediction)
    return weights


def min_snr_weights(sigmas: np.ndarray, gamma: float, prediction: str = "epsilon") -> np.ndarray:
    """Return the Min-SNR weight of each noise level (Hang et al., 2023, section 3.4).

    It is min(SNR, γ)/SNR for predicted noise and min(SNR, γ)/(SNR + 1) for predicted v, which is the same weight of the
    error of the denoised latents; the signal-to-noise ratio of σ is 1/σ². Levels with a higher ratio than γ count less.
    Without γ (0) all weights are 1.
    """
    if not gamma:
        return np.ones_like(sigmas)
    weights = np.minimum(1.0, gamma * sigmas**2)
    return weights / (sigmas**2 + 1.0) if prediction == "v_prediction" else weights


def debiased_weights(sigmas: np.ndarray, prediction: str) -> np.ndarray:
    """Return 1/SNR^½ (Yu et al., 2023, "Debias the training of diffusion models"), for v 1/(SNR + 1), as kohya does."""
    snr = _limited_snr(sigmas)
    return 1.0 / (snr + 1.0) if prediction == "v_prediction" else 1.0 / np.sqrt(snr)


def _snr_share(sigmas: np.ndarray) -> np.ndarray:
    """Return SNR/(SNR + 1), with which an error of v costs as much as the error of ε that it implies."""
    snr = _limited_snr(sigmas)
    return snr / (snr + 1.0)


def _limited_snr(sigmas: np.ndarray) -> np.ndarray:
    return np.minimum(1.0 / sigmas**2, _MAX_SNR)
