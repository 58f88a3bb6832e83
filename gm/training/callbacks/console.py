"""Progress on the console: a tqdm bar in a terminal, a line now and then in a file."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from typing import TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from gm.training.callbacks.base import Callback, TrainerView, write_line
from gm.training.step_result import MovingAverage, StepResult

_SECONDS_BETWEEN_LINES = 10.0


class ConsoleProgress(Callback):
    """Shows step, update, smoothed loss, learning rate and time left."""

    def __init__(self, total_steps: int, num_updates: int, stream: TextIO | None = None) -> None:
        self.total_steps = total_steps
        self.num_updates = num_updates
        self.stream = stream or sys.stdout
        self.seconds = MovingAverage()
        self.last_line = float("-inf")
        self.bar: tqdm | None = None
        self.redirect = contextlib.ExitStack()

    def on_train_begin(self, trainer: TrainerView) -> None:
        resume_from = trainer.setup.resume_from
        if resume_from:
            write_line(f"resuming from {resume_from.path}, after step {resume_from.step}")

    def on_step_end(self, result: StepResult) -> None:
        if self.stream.isatty():
            self._update_bar(result)
        else:
            self._write_line(result)

    def needs_state(self, step: int) -> bool:
        return False

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.redirect.close()

    def _update_bar(self, result: StepResult) -> None:
        if self.bar is None:
            self.bar = tqdm(
                total=self.total_steps,
                initial=result.step - 1,
                desc="training",
                unit="step",
                file=self.stream,
                dynamic_ncols=True,
            )
            self.redirect.enter_context(logging_redirect_tqdm([logging.getLogger("gm")]))
        self.bar.set_postfix_str(self._metrics(result), refresh=False)
        self.bar.update()

    def _write_line(self, result: StepResult) -> None:
        # The first step compiles the graph, so its time says nothing about the time left.
        is_first = self.last_line == float("-inf")
        seconds = result.seconds if is_first else self.seconds.add(result.seconds)
        if not result.is_last and time.monotonic() - self.last_line < _SECONDS_BETWEEN_LINES:
            return
        self.last_line = time.monotonic()
        left = "?" if is_first else tqdm.format_interval(seconds * (self.total_steps - result.step))
        line = f"step {result.step}/{self.total_steps}  {self._metrics(result)}  {seconds:.3g} s/step  {left} left"
        print(line, file=self.stream, flush=True)

    def _metrics(self, result: StepResult) -> str:
        skipped = f"  skipped {result.skipped}" if result.skipped else ""
        return (
            f"update {result.update}/{self.num_updates}  loss {result.loss_smoothed:.4f}  "
            f"lr {result.learning_rate:.2e}{skipped}"
        )
