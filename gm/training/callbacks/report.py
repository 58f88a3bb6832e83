"""HTML report at the end of a run."""

from __future__ import annotations

from pathlib import Path

from gm.training import checkpoint, html_report
from gm.training.callbacks.base import Callback, TrainerView, skip_failed_write, write_line
from gm.training.step_result import StepResult


class HtmlReport(Callback):
    """Writes `report.html` from the files of the run after the last step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, trainer: TrainerView) -> None:
        self.setup = trainer.setup

    def on_step_end(self, result: StepResult) -> None:
        if not result.is_last:
            return
        config = self.setup.config
        options = {name: values for name, values in checkpoint.config_values(config).items() if name != "model"}
        tokens = ", ".join(concept.placeholder_token for concept in self.setup.concepts)
        with skip_failed_write("the report"):
            path = html_report.write(self.folder, f"{tokens} on {config.model.version}", options)
            write_line(f"report {path}")

    def needs_state(self, step: int) -> bool:
        return False
