"""Log file of JSON lines, `log.jsonl`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from gm.training.callbacks.base import Callback, TrainerView, write_line
from gm.training.step_result import StepResult


class JsonLinesLogger(Callback):
    """Appends a record every `log_interval` steps and at the last, and the records of other callbacks."""

    def __init__(self, path: Path, log_interval: int) -> None:
        self.log_interval = log_interval
        self.file = path.open("a", encoding="utf-8")
        self.warned = False

    def on_train_begin(self, trainer: TrainerView) -> None:
        resume_from = trainer.setup.resume_from
        if resume_from:
            self.on_log({"resumed_at": resume_from.step, "changed_options": trainer.setup.changed_options})

    def on_step_end(self, result: StepResult) -> None:
        if result.is_last or result.step % self.log_interval == 0:
            record = dataclasses.asdict(result)
            del record["is_last"]
            if result.context_loss is None:
                del record["context_loss"]
            self.on_log(record)

    def needs_state(self, step: int) -> bool:
        return False

    def on_log(self, record: dict[str, Any]) -> None:
        """Append a record; values that JSON lacks, not-a-number and infinity, become null."""
        values = {name: _json_value(value) for name, value in record.items()}
        try:
            self.file.write(json.dumps(values, allow_nan=False) + "\n")
            self.file.flush()
        except OSError as error:
            if not self.warned:
                write_line(f"cannot write {self.file.name}: {error.strerror}; training continues")
            self.warned = True

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written is still in the buffer
            self.file.close()


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
