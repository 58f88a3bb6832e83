"""Losses of the predicted noise, and the weights of the noise levels."""

from __future__ import annotations

from typing import Any

import numpy as np


def squared_error(error: Any) -> Any:
    """Return error², element by element."""
    return error * error


def pseudo_huber(error: Any, c: float) -> Any:
    """Return 2c((error² + c²)^½ - c), element by element (Charbonnier et al., 1997).

    It is error² where that is small compared with c², and 2c·|error| where it is large. The factor is that of kohya's
    `huber`, with which small errors cost as much as with `squared_error`.
    """
    return 2.0 * c * ((error * error + c * c) ** 0.5 - c)


def min_snr_weights(sigmas: np.ndarray, gamma: float) -> np.ndarray:
    """Return min(SNR, γ)/SNR, the Min-SNR weight of each noise level (Hang et al., 2023, section 3.4).

    For predicted noise; the signal-to-noise ratio of σ is 1/σ². Levels with a higher ratio than γ count less. Without γ
    (0) all weights are 1.
    """
    return np.minimum(1.0, gamma * sigmas**2) if gamma else np.ones_like(sigmas)
