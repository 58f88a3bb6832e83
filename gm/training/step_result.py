"""Result of a training step, and the running loss that it reports."""

from __future__ import annotations

import math
from dataclasses import dataclass

STOPPED = "stopped"
DIVERGED = "diverged"

_SMOOTHING = 0.98


@dataclass(frozen=True)
class StepResult:
    """Metrics of one training step. Steps and updates count from 1; `update` is the last one so far, 0 before any."""

    step: int
    update: int
    loss: float  # mean over all ranks
    loss_smoothed: float  # moving average over about 50 steps; not a number before the first finite step
    finite: bool  # whether loss and gradient were finite on all ranks
    skipped: int  # steps so far that were not finite
    learning_rate: float  # the largest of all text encoders
    gradient_norm: float | None  # before clipping; None without an update
    seconds: float
    ended: str | None = None  # STOPPED or DIVERGED if this step ended the run early
    is_last: bool = False
    context_loss: float | None = None  # part of the loss, without its weight; None without a context loss


class MovingAverage:
    """Exponential moving average with bias correction (Kingma & Ba, 2015, section 3)."""

    def __init__(self, total: float = 0.0, weight: float = 0.0) -> None:
        self.total = total
        self.weight = weight

    def add(self, value: float) -> float:
        """Add `value`; return the average."""
        self.total = _SMOOTHING * self.total + (1 - _SMOOTHING) * value
        self.weight = _SMOOTHING * self.weight + (1 - _SMOOTHING)
        return self.value

    @property
    def value(self) -> float:
        """The average; not a number before the first value."""
        return self.total / self.weight if self.weight else math.nan


class RunningLoss:
    """Smoothed loss over the finite steps, and the number of the others; kept in checkpoints."""

    def __init__(self, total: float = 0.0, weight: float = 0.0, skipped: int = 0) -> None:
        self.average = MovingAverage(total, weight)
        self.skipped = skipped

    def add(self, loss: float, finite: bool) -> float:
        """Add the loss of a step; return the smoothed loss."""
        if finite:
            return self.average.add(loss)
        self.skipped += 1
        return self.average.value

    def state_dict(self) -> dict[str, float]:
        return {"total": self.average.total, "weight": self.average.weight, "skipped": self.skipped}
