"""Validation loss, measured before, during and after training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from gm.training import embedding_files
from gm.training.callbacks.base import Callback, TrainerView, skip_failed_write, write_line
from gm.training.callbacks.embedding_checkpoints import save_embeddings
from gm.training.step_result import StepResult
from gm.training.train_state import Vectors
from gm.training.validation import ValidationHistory, ValidationLoss, change


class Validation(Callback):
    """Logs the validation loss, saves the embedding with the lowest, and warns of overfitting."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history: ValidationHistory | None = None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = ValidationHistory(**state)

    def state_dict(self) -> dict[str, Any]:
        assert self.history
        return dataclasses.asdict(self.history)

    def on_train_begin(self, trainer: TrainerView) -> None:
        self.trainer = trainer
        num_samples = trainer.setup.config.training.num_validation_samples
        self.loss = ValidationLoss(trainer.model, trainer.batches, num_samples, trainer.backend)
        self.start = trainer.step

    def on_first_step(self, vectors: Vectors) -> None:
        num_samples = self.trainer.setup.config.training.num_validation_samples
        if self.history is None or len(self.history.first) != num_samples:
            losses = self.loss.losses(vectors).tolist()
            self.history = ValidationHistory(losses, losses, self.start)

    def on_step_end(self, result: StepResult) -> None:
        if result.ended or not (result.is_last or self.needs_state(result.step)):
            return
        assert self.history
        losses = self.loss.losses(self.trainer.state.vector_arrays())
        event = self.history.add(result.step, losses, result.loss_smoothed)
        if event == "best":
            with skip_failed_write("the best embedding so far"):
                save_embeddings(self.trainer, self.folder, result.step, embedding_files.BEST)
        if event == "overfit":
            self._warn(result.step)
        record = self._record(result.step, losses)
        if result.is_last:
            self._print(record, len(losses))
        self.trainer.log(record)

    def needs_state(self, step: int) -> bool:
        return step % self.trainer.setup.config.training.validation_loss_interval == 0

    def _record(self, step: int, losses: np.ndarray) -> dict[str, Any]:
        assert self.history
        first = np.asarray(self.history.first)
        mean, low, high = change(first, losses)
        return {
            "step": step,
            "validation_loss": float(losses.mean()),
            "validation_loss_before": float(first.mean()),
            "validation_loss_change": mean,
            "validation_loss_change_low": low,
            "validation_loss_change_high": high,
            "validation_loss_improved": int((losses < first).sum()),
            "validation_loss_best": float(np.mean(self.history.best)),
            "validation_loss_best_step": self.history.best_step,
            "validation_loss_change_by_concept": self._by_concept(losses - first),
        }

    def _by_concept(self, changes: np.ndarray) -> dict[str, float]:
        """Return the mean change of the samples of each concept, by placeholder token."""
        concepts = self.trainer.setup.concepts
        indices = self.loss.concept_of_sample
        return {concepts[k].placeholder_token: float(changes[indices == k].mean()) for k in sorted({*indices.tolist()})}

    def _warn(self, step: int) -> None:
        assert self.history
        setup = self.trainer.setup
        names = [embedding_files.file_name(setup, concept, embedding_files.BEST) for concept in setup.concepts]
        best_step = self.history.best_step
        best = f"the best embedding, of step {best_step}, is in {', '.join(names)}" if best_step else "none was better"
        write_line(f"step {step}: the validation loss rises while the training loss falls: overfitting; {best}")

    def _print(self, record: dict[str, Any], num_samples: int) -> None:
        write_line(
            f"validation loss {record['validation_loss_before']:.4f} → {record['validation_loss']:.4f} "
            f"({record['validation_loss_change']:+.4f}, 95 % {record['validation_loss_change_low']:+.4f} to "
            f"{record['validation_loss_change_high']:+.4f}); lower in {record['validation_loss_improved']} of "
            f"{num_samples} samples; best {record['validation_loss_best']:.4f} after step "
            f"{record['validation_loss_best_step']}"
        )
        by_concept = record["validation_loss_change_by_concept"]
        if len(by_concept) > 1:
            changes = ", ".join(f"{token} {change:+.4f}" for token, change in by_concept.items())
            write_line(f"change of the validation loss by concept: {changes}")
