"""The learning rates of every update."""

from __future__ import annotations

import math

from gm.config import TrainingConfig

# Of one_cycle, as in PyTorch's OneCycleLR: the part of the run that rises, from 1/25 of the peak, down to 1e-4 of that.
_RISING, _START, _END = 0.3, 1 / 25, 1 / 25e4


def peaks(config: TrainingConfig) -> tuple[float, float]:
    """Return the peak learning rate of the rows of each encoder, without what `scale_lr` makes of it."""
    one, two = config.learning_rate_clip_l, config.learning_rate_clip_g
    return config.learning_rate if one is None else one, config.learning_rate if two is None else two


def learning_rates(update: int, updates: int, config: TrainingConfig, world: int = 1) -> tuple[float, float]:
    """Return each encoder's learning rate of update `update` (from 0) out of `updates`, with `world` devices."""
    scale = config.train_batch_size * config.gradient_accumulation_steps * world if config.scale_lr else 1
    share = factor(update, updates, config)
    one, two = peaks(config)
    return one * scale * share, two * scale * share


def factor(update: int, updates: int, config: TrainingConfig) -> float:
    """Return the learning rate of update `update` (from 0) out of `updates`, as a part of its peak.

    It rises linearly over `lr_warmup_steps`, reaching the peak with the first update after them, then stays
    ("constant") or falls to 0 at the end: along a line, half a cosine, that `lr_num_cycles` times, or a line to the
    power of `lr_power`. "one_cycle" rises along half a cosine over `lr_warmup_steps`, by default 0.3 of the run, and
    falls along another (Smith and Topin, 2018).
    """
    if config.lr_scheduler == "one_cycle":
        return _one_cycle(update, updates, config.lr_warmup_steps)
    if update < config.lr_warmup_steps:
        return (update + 1) / (config.lr_warmup_steps + 1)
    done = (update - config.lr_warmup_steps) / max(1, updates - config.lr_warmup_steps)
    return {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": _half_cosine(1.0, 0.0, done),
        "cosine_with_restarts": _half_cosine(1.0, 0.0, done * config.lr_num_cycles % 1.0),
        "polynomial": (1.0 - done) ** config.lr_power,
    }[config.lr_scheduler]


def _one_cycle(update: int, updates: int, warm_up: int) -> float:
    top = (warm_up or _RISING * updates) - 1  # the update that has the peak
    if update <= top:
        return _half_cosine(_START, 1.0, update / top if top else 1.0)
    return _half_cosine(1.0, _END, (update - top) / (updates - 1 - top))


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * done))
