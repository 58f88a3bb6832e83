"""Callbacks: the order in which they are called, their state, and the example of the guide with a stand-in client."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from gm.runtime.backend import Backend
from gm.training import checkpoint, setup, trainer
from gm.training.callbacks import Callback, default_callbacks
from gm.training.step_result import StepResult
from gm.training.trainer import Trainer
from tests.project import Workshop, whole_runs

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
EAGER = Backend("CPU", graph=False, dtype=ms.float32)


class WandbStandIn(types.ModuleType):
    """Stand-in for the client of Weights & Biases, which is also its run."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.options: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0

    def init(self, **options: Any) -> WandbStandIn:
        self.options = options
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    class Image:
        def __init__(self, pixels: np.ndarray) -> None:
            self.pixels = pixels


class Recorder(Callback):
    """Counts steps in its state, and records what it is called with."""

    def __init__(self) -> None:
        self.steps = 0
        self.calls: list[str] = []

    def on_train_begin(self, trainer: Trainer) -> None:
        self.calls.append("begin")

    def on_step_end(self, result: StepResult) -> None:
        self.steps += 1
        self.calls.append(f"step {result.step}")

    def close(self) -> None:
        self.calls.append("close")

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def test_logger_of_the_guide_logs_a_run(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = WandbStandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    section = GUIDE.read_text().split("## Log to another tracker")[1]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 30
    names: dict[str, Any] = {}
    exec(block, names)
    training = {"total_step": 2, "num_validation_samples": 2, "infer_during_train": True, "save_path": str(tmp_path)}
    config = workshop.config(training=training)
    whole_runs(config, callbacks=[names["WandbLogger"](project="toy")])
    assert wandb.options["project"] == "toy"
    assert wandb.options["config"]["training"]["total_step"] == 2
    losses = [values["loss"] for step, values in wandb.logged if "loss" in values]
    assert len(losses) == 2
    assert [step for step, values in wandb.logged if "validation_loss" in values] == [2]
    images = {step: values["sample_images"].pixels for step, values in wandb.logged if "sample_images" in values}
    assert {step: grid.shape for step, grid in images.items()} == {0: (16, 16, 3), 2: (16, 16, 3)}
    assert wandb.finished == 1


def test_callbacks_are_closed_after_an_error(workshop: Workshop) -> None:
    class Failing(Callback):
        def on_step_end(self, result: StepResult) -> None:
            raise ValueError("broken")

    recorder = Recorder()
    run = trainer.prepare(workshop.model, setup.prepare(workshop.config()), EAGER)
    run.callbacks = [recorder, Failing()]
    with pytest.raises(ValueError, match="broken"):
        run.train()
    assert recorder.calls == ["begin", "step 1", "close"]


def test_training_state_is_written_last_and_keeps_the_state_of_callbacks(workshop: Workshop, tmp_path: Path) -> None:
    options = {"total_step": 2, "save_path": str(tmp_path)}
    training_setup = setup.prepare(workshop.config(training={**options, "num_validation_samples": 2}))
    recorder = Recorder()
    names = [type(callback).__name__ for callback in default_callbacks(training_setup, tmp_path, [recorder])]
    assert names[-1] == "StateCheckpoints"
    assert names.index("JsonLinesLogger") < names.index("Recorder") < names.index("EmbeddingCheckpoints")
    assert names.index("Validation") < names.index("HtmlReport")
    whole_runs(training_setup.config, callbacks=[recorder])
    state = checkpoint.find("latest", tmp_path)
    assert state
    assert state.callbacks["Recorder"] == {"steps": 2}
    assert set(state.callbacks) == {"Recorder", "Validation"}
    resumed = Recorder()
    config = workshop.config(training={**options, "total_step": 3, "resume": "latest"})
    whole_runs(config, callbacks=[resumed])
    assert (resumed.steps, resumed.calls) == (3, ["begin", "step 3", "close"])
