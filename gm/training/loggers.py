"""What a person sees of a run while it trains, and the log a program reads."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any, TextIO

from gm.runtime.duration import format_duration
from gm.runtime.progress import Line
from gm.training.loop import StepResult

_SMOOTHING = 0.98


class MovingAverage:
    """An exponential average that starts at its first value's level (bias-corrected, as Adam's)."""

    def __init__(self) -> None:
        self.total, self.weight = 0.0, 0.0

    def add(self, value: float) -> float:
        """Take `value` in and return the average."""
        self.total = _SMOOTHING * self.total + (1 - _SMOOTHING) * value
        self.weight = _SMOOTHING * self.weight + (1 - _SMOOTHING)
        return self.value

    @property
    def value(self) -> float:
        """The average; not a number before there is one."""
        return self.total / self.weight if self.weight else math.nan


class Console:
    """One progress line, and `log.jsonl` with a record every `log_interval` steps and at the last."""

    def __init__(self, log: Path, steps: int, updates: int, log_interval: int, stream: TextIO | None = None) -> None:
        self.steps, self.updates, self.log_interval = steps, updates, log_interval
        self.line, self.loss, self.pace, self.skipped = Line(stream), MovingAverage(), MovingAverage(), 0
        self.shown, self.complains = 0, True
        self.file = log.open("a", encoding="utf-8")

    def notes(self) -> dict[str, Any]:
        """Return what a resumed run's console goes on from."""
        return {"total": self.loss.total, "weight": self.loss.weight, "skipped": self.skipped}

    def go_on(self, notes: dict[str, Any]) -> None:
        """Take over the `notes` of an earlier console."""
        self.loss.total, self.loss.weight, self.skipped = notes["total"], notes["weight"], notes["skipped"]

    def show(self, report: StepResult) -> None:
        """Take one step's report."""
        if report.finite:
            smoothed = self.loss.add(report.loss)
        else:
            self.skipped += 1
            smoothed = self.loss.value
        # The first step holds the compilation of the graph, which says nothing about the time that is left.
        self.shown += 1
        pace = self.pace.add(report.seconds) if self.shown > 1 else report.seconds
        left = format_duration(pace * (self.steps - report.step)) if self.shown > 1 else "…"
        last = report.step == self.steps or report.ended is not None
        skipped = f"  skipped {self.skipped}" if self.skipped else ""
        self.line.show(
            f"step {report.step}/{self.steps}  update {report.update}/{self.updates}  loss {smoothed:.4f}  "
            f"lr {report.learning_rate:.2e}  {pace:.3g} s/step  {left} left{skipped}",
            last=last,
        )
        if last or report.step % self.log_interval == 0:
            self.record(**vars(report), loss_smoothed=smoothed, skipped=self.skipped)

    def record(self, **values: Any) -> None:
        """Append one JSON line; not-a-number and infinity become null, which is what JSON has.

        A log that cannot be written to does not end the run.
        """
        clean = {k: None if isinstance(v, float) and not -1e308 < v < 1e308 else v for k, v in values.items()}
        try:
            self.file.write(json.dumps(clean, allow_nan=False) + "\n")
            self.file.flush()
        except OSError as error:
            if self.complains:
                self.say(f"cannot write to {self.file.name}: {error.strerror}; training goes on")
            self.complains = False

    def say(self, text: str) -> None:
        """Print a line of its own, above the progress line."""
        self.line.say(text)

    def close(self) -> None:
        self.line.end()
        with contextlib.suppress(OSError):  # what could not be written is still in its buffer
            self.file.close()
