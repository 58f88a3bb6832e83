"""What files of v-prediction models hold, for tests of several layouts."""

from __future__ import annotations

import numpy as np

from gm.config.model import ScheduleConfig
from gm.diffusion.schedule import training_sigmas

LEAVE_OUT = "if that is right, leave out --config, or give one with model.schedule."
EMPTY = np.zeros(0, np.float32)
ALPHAS = 1 / (1 + training_sigmas(ScheduleConfig()) ** 2)


def zero_terminal_snr() -> np.ndarray:
    """Return ᾱ of the rescaled schedule (Lin et al., 2023, algorithm 1)."""
    root = ALPHAS**0.5
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
