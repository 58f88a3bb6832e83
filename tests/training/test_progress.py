"""Progress bar, log lines and the moving average of a run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from gm.training.callbacks.console import ConsoleProgress
from gm.training.callbacks.json_lines import JsonLinesLogger
from gm.training.step_result import MovingAverage, RunningLoss, StepResult


def results() -> list[StepResult]:
    """Return the results of three steps, the second of which is not finite."""
    loss_history = RunningLoss()
    step_results = []
    for step, loss in ((1, 0.5), (2, float("nan")), (3, 0.7)):
        finite = bool(np.isfinite(loss))
        smoothed = loss_history.add(loss, finite)
        skipped = loss_history.skipped
        step_results.append(StepResult(step, step, loss, smoothed, finite, skipped, 1e-3, 1.0, 0.25, is_last=step == 3))
    return step_results


def test_a_terminal_shows_a_progress_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    console = ConsoleProgress(3, 3, stream)
    for result in results():
        console.on_step_end(result)
    console.close()
    last = stream.getvalue().split("\r")[-1]
    assert "3/3" in last
    assert "update 3/3  loss 0.6010  lr 1.00e-03  skipped 1" in last
    assert last.endswith("\n")


def test_progress_in_a_file_and_null_for_nan_in_the_log(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = ConsoleProgress(3, 3, stream)
    log = JsonLinesLogger(tmp_path / "log.jsonl", log_interval=1)
    for result in results():
        console.on_step_end(result)
        log.on_step_end(result)
    console.close()
    log.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 1/3  update 1/3  loss 0.5000  lr 1.00e-03  0.25 s/step  ? left"
    assert lines[-1] == "step 3/3  update 3/3  loss 0.6010  lr 1.00e-03  skipped 1  0.25 s/step  00:00 left"
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert records[1]["loss"] is None
    assert records[2]["skipped"] == 1


def test_moving_average_is_bias_corrected() -> None:
    average = MovingAverage()
    assert average.add(3.0) == pytest.approx(3.0)
    assert average.add(5.0) == pytest.approx((0.98 * 0.02 * 3 + 0.02 * 5) / (1 - 0.98**2))
