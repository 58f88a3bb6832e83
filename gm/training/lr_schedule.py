"""Learning rate schedules, evaluated at every update."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gm.config import TrainingConfig

# one_cycle, as in PyTorch's OneCycleLR: fraction of the run that rises, and first and last factor.
_RISING = 0.3
_FIRST_FACTOR = 1 / 25
_LAST_FACTOR = 1 / 25e4


def peak_learning_rates(config: TrainingConfig, encoders: Sequence[str]) -> tuple[float, ...]:
    """Return the peak learning rate of the vectors of each text encoder, before `scale_lr`."""
    overrides = {
        "clip_l": config.learning_rate_clip_l,
        "clip_g": config.learning_rate_clip_g,
        "clip_h": config.learning_rate_clip_h,
    }
    peaks = (overrides.get(name) for name in encoders)
    return tuple(config.peak_learning_rate if peak is None else peak for peak in peaks)


def learning_rates(
    update: int, num_updates: int, config: TrainingConfig, encoders: Sequence[str], world: int = 1
) -> tuple[float, ...]:
    """Return the learning rate of each text encoder at `update` (from 0) of `num_updates`, with `world` devices."""
    scale = config.train_batch_size * config.gradient_accumulation_steps * world if config.scale_lr else 1
    share = factor(update, num_updates, config)
    return tuple(peak * scale * share for peak in peak_learning_rates(config, encoders))


def factor(update: int, num_updates: int, config: TrainingConfig) -> float:
    """Return the learning rate at `update` (from 0) of `num_updates` as a fraction of its peak.

    It rises linearly over `lr_warmup_steps`, reaching the peak with the first update after them, then stays
    ("constant") or falls to 0 at the end: linearly, along half a cosine (`lr_num_cycles` times), or along a polynomial
    with exponent `lr_power`. "one_cycle" rises along half a cosine over `lr_warmup_steps`, by default 0.3 of the run,
    and falls along another (Smith & Topin, 2018).
    """
    if config.lr_scheduler == "one_cycle":
        return _one_cycle(update, num_updates, config.lr_warmup_steps)
    if update < config.lr_warmup_steps:
        return (update + 1) / (config.lr_warmup_steps + 1)
    done = (update - config.lr_warmup_steps) / max(1, num_updates - config.lr_warmup_steps)
    return {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": _half_cosine(1.0, 0.0, done),
        "cosine_with_restarts": _half_cosine(1.0, 0.0, done * config.lr_num_cycles % 1.0),
        "polynomial": (1.0 - done) ** config.lr_power,
    }[config.lr_scheduler]


def _one_cycle(update: int, num_updates: int, warmup: int) -> float:
    top = (warmup or _RISING * num_updates) - 1  # the update at the peak
    if update <= top:
        return _half_cosine(_FIRST_FACTOR, 1.0, update / top if top else 1.0)
    return _half_cosine(1.0, _LAST_FACTOR, (update - top) / (num_updates - 1 - top))


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * done))
