"""The learning rate of every update."""

from __future__ import annotations

import math

from gm.config import TrainingConfig


def learning_rate(update: int, updates: int, config: TrainingConfig) -> float:
    """Return the learning rate of update `update` (from 0) out of `updates`.

    It rises linearly over `lr_warmup_updates`, reaching the peak with the first update after them, then stays
    ("constant") or falls to 0 at the end along a line or half a cosine.
    """
    if update < config.lr_warmup_updates:
        return config.learning_rate * (update + 1) / (config.lr_warmup_updates + 1)
    done = (update - config.lr_warmup_updates) / max(1, updates - config.lr_warmup_updates)
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return config.learning_rate * factor[config.lr_schedule]
