"""Interface of callbacks, and their output on the console."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from gm.errors import UserError
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime.backend import Backend
from gm.training.batches import BatchLoader
from gm.training.setup import TrainingSetup
from gm.training.step_result import RunningLoss, StepResult
from gm.training.train_state import TrainState, Vectors


class TrainerView(Protocol):
    """Attributes of `gm.training.trainer.Trainer` that a callback may use."""

    model: StableDiffusion
    setup: TrainingSetup
    backend: Backend
    state: TrainState
    batches: BatchLoader
    base_model: str
    initial_vectors: Vectors
    callbacks: Sequence[Callback]
    step: int
    running_loss: RunningLoss

    def log(self, record: dict[str, Any]) -> None:
        """Pass a record to `on_log` of all callbacks."""


class Callback:
    """Base class of callbacks: every method does nothing and may be overridden. They run on the first rank only."""

    def on_train_begin(self, trainer: TrainerView) -> None:
        """Called before the first step; the trainer has the setup, the state and the model."""

    def on_first_step(self, vectors: Vectors) -> None:
        """Called once after the first step, before its `on_step_end`; `vectors` are those before it.

        What compiles graphs belongs here: the other ranks wait in their second step, connected with this one.
        """

    def on_step_end(self, result: StepResult) -> None:
        """Called after every step, in the order of the callbacks."""

    def needs_state(self, step: int) -> bool:
        """Return whether `on_step_end` reads the training state after `step`, as long as the run does not end there.

        Where none does, an Ascend card takes the next step before the callbacks are called.
        """
        return True

    def on_log(self, record: dict[str, Any]) -> None:
        """Called with a record of another callback: "step" and a validation loss, or what `EmbeddingSummary` logs."""

    def on_sample_images(self, step: int, grid: np.ndarray) -> None:
        """Called with sample images of `step` as a grid, uint8 [H, W, 3]."""

    def close(self) -> None:
        """Called once at the end, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return JSON values that the training state keeps for a resumed run."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the values of `state_dict`, before `on_train_begin` of a resumed run."""


def write_line(text: str) -> None:
    """Print a line above the progress bar."""
    tqdm.write(text)
    sys.stdout.flush()


@contextlib.contextmanager
def skip_failed_write(name: str, required: bool = False) -> Iterator[None]:
    """Print a UserError of the block and continue training, or raise it if the write is `required`."""
    try:
        yield
    except UserError as error:
        if required:
            raise
        write_line(f"{name} is not saved, training continues: {error}")
