"""Options of the optimizers: those that have no meaning with one of them, and unusual learning rates."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

from gm.config import TrainingConfig
from gm.errors import UserError
from gm.training import lr_schedule

log = logging.getLogger("gm")

# Options that --optimizer direction has no use for: the value that says so, and why.
_NOT_OF_DIRECTION = {
    "weight_decay": (0.0, "it fixes the norms of the vectors"),
    "preserve_embedding_norm": (0.0, "it fixes the norms of the vectors"),
    "max_grad_norm": (0.0, "it divides each gradient by its norm"),
    "adam_beta1": (None, "it has no moments"),
    "adam_beta2": (None, "its own decay rate is --beta"),
    "adam_epsilon": (None, "it has no moments"),
}
_TOKEN_SCALES = ("auto", "mean")
_LEAST_ROTATION, _MOST_ROTATION = 0.005, 0.3  # learning rates; the paper's are 0.01 to 0.04


def check(training: TrainingConfig, encoders: Iterable[str]) -> None:
    """Raise UserError for an option that the optimizer has no use for; name a learning rate that is not usual."""
    if training.optimizer == "prodigy" and training.peak_learning_rate < 0.1:
        log.warning(
            "--optimizer prodigy estimates the learning rate and multiplies it by --learning_rate %g; 1 is usual",
            training.peak_learning_rate,
        )
    if training.optimizer == "direction":
        _check_direction(training)
        _check_rotation(training, tuple(encoders))


def _check_direction(training: TrainingConfig) -> None:
    default = TrainingConfig()
    for name, (off, reason) in _NOT_OF_DIRECTION.items():
        value = getattr(training, name)
        if value not in (off, getattr(default, name)):
            remedy = "leave it out" if off is None else f"leave it out, give {off:g}"
            message = f"--{name} {value:g} has no meaning with --optimizer direction: {reason}"
            raise UserError(f"{message}; {remedy}, or give --optimizer adamw")
    scale = training.token_scale
    if scale not in _TOKEN_SCALES and not _is_positive(scale):
        raise UserError(f"--token_scale {scale!r} must be {', '.join(_TOKEN_SCALES)} or a number above 0")


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _check_rotation(training: TrainingConfig, encoders: tuple[str, ...]) -> None:
    scale = training.train_batch_size * training.gradient_accumulation_steps if training.scale_lr else 1
    rates = [peak * scale for peak in lr_schedule.peak_learning_rates(training, encoders) if peak > 0]
    if rates and (max(rates) < _LEAST_ROTATION or max(rates) > _MOST_ROTATION):
        log.warning(
            "--optimizer direction rotates each vector by %.3g° at an update, the arc tangent of the learning rate %g; "
            "0.01 to 0.04 is usual; for a rate of AdamW's give --optimizer adamw",
            math.degrees(math.atan(max(rates))),
            max(rates),
        )
