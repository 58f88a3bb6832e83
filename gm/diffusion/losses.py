"""What an error of the predicted noise costs, and how much each noise level counts."""

from __future__ import annotations

from typing import Any

import numpy as np


def squared(error: Any) -> Any:
    """Return error², of any shape."""
    return error * error


def pseudo_huber(error: Any, c: float) -> Any:
    """Return 2c((error² + c²)^½ - c): error² where that is small beside c², else 2c·|error| (Charbonnier et al., 1997).

    The scale is the one that Stable Diffusion trainers use, with which small errors cost what `squared` makes of them.
    """
    return 2.0 * c * ((error * error + c * c) ** 0.5 - c)


def min_snr_weights(sigmas: np.ndarray, gamma: float) -> np.ndarray:
    """Return min(1, γ/SNR) of each noise level σ, whose signal-to-noise ratio is 1/σ² (Hang et al., 2023, section 3.4).

    For predicted noise: levels with more signal than γ count less. γ of 0 counts all alike.
    """
    return np.minimum(1.0, gamma * sigmas**2) if gamma else np.ones_like(sigmas)
