"""Embedding files, saved at intervals and at the end."""

from __future__ import annotations

from pathlib import Path

from gm.training import embedding_files
from gm.training.callbacks.base import Callback, TrainerView, skip_failed_write
from gm.training.step_result import StepResult


class EmbeddingCheckpoints(Callback):
    """Saves the embedding of each concept every `save_ckpt_interval` steps and at the last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, trainer: TrainerView) -> None:
        self.trainer = trainer

    def on_step_end(self, result: StepResult) -> None:
        if is_due(self.trainer, result):
            with skip_failed_write("the embedding", required=result.is_last):
                save_embeddings(self.trainer, self.folder, result.step, result.step)

    def needs_state(self, step: int) -> bool:
        return in_interval(self.trainer, step)


def is_due(trainer: TrainerView, result: StepResult) -> bool:
    """Return whether the embeddings are saved after this step."""
    return result.is_last or in_interval(trainer, result.step)


def in_interval(trainer: TrainerView, step: int) -> bool:
    """Return whether the embeddings are saved after `step`, even if it is not the last."""
    return step % trainer.setup.config.training.save_ckpt_interval == 0


def save_embeddings(trainer: TrainerView, folder: Path, step: int, name: int | str) -> None:
    """Write the current embedding of each concept; `name` is the step in the file name, or `embedding_files.BEST`."""
    vectors = trainer.state.vector_arrays()
    trained = embedding_files.embeddings(trainer.setup, vectors, trainer.base_model, step)
    embedding_files.save(folder, trainer.setup, trained, name)
