"""Embedding files, saved at intervals and at the end."""

from __future__ import annotations

from pathlib import Path

from gm.embeddings.embedding import Embedding
from gm.training import embedding_files, learned_embeds
from gm.training.callbacks.base import Callback, TrainerView, skip_failed_write
from gm.training.step_result import StepResult


class LearnedEmbeds(Callback):
    """Writes the files of diffusers' script every `save_ckpt_interval` steps and at the last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, trainer: TrainerView) -> None:
        self.trainer = trainer

    def on_step_end(self, result: StepResult) -> None:
        if not is_due(self.trainer, result):
            return
        trainer = self.trainer
        trained = current_embeddings(trainer, result.step)
        suffix = trainer.setup.config.training.learned_embeds
        with skip_failed_write("learned_embeds", required=result.is_last):
            if in_interval(trainer, result.step):
                learned_embeds.save(self.folder, trained, suffix, result.update)
            if result.is_last:
                learned_embeds.save(self.folder, trained, suffix)
                learned_embeds.save_concept(self.folder, trainer.setup.concepts)

    def needs_state(self, step: int) -> bool:
        return in_interval(self.trainer, step)


class OutputFile(Callback):
    """Writes the last embedding as `output_name`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, trainer: TrainerView) -> None:
        self.trainer = trainer

    def on_step_end(self, result: StepResult) -> None:
        if result.is_last:
            learned_embeds.save_as(self.path, current_embeddings(self.trainer, result.step))

    def needs_state(self, step: int) -> bool:
        return False


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
    embedding_files.save(folder, trainer.setup, current_embeddings(trainer, step), name)


def current_embeddings(trainer: TrainerView, step: int) -> list[Embedding]:
    """Return the embedding of each concept as it is after `step`."""
    return embedding_files.embeddings(trainer.setup, trainer.state.vector_arrays(), trainer.base_model, step)
