"""Norms, angles and nearest tokens of the embedding vectors over the run."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from gm.embeddings.nearest_tokens import nearest_tokens
from gm.training import token_norms
from gm.training.callbacks.base import Callback, TrainerView, write_line
from gm.training.callbacks.embedding_checkpoints import in_interval, is_due
from gm.training.concept_data import TrainingConcept
from gm.training.html_report import MAX_RELATIVE_NORM
from gm.training.step_result import StepResult

log = logging.getLogger("gm")

_NUM_TOKENS = 5  # nearest tokens per vector
_MIN_INTERVAL, _MAX_RECORDS = 25, 50  # steps between records, and about their number in a long run


class EmbeddingSummary(Callback):
    """Logs norms, angles and nearest tokens of the vectors at intervals; prints the tokens at the end.

    A record comes every 25 steps, in long runs 50 times, and with every embedding file. Norms are also relative to the
    usual norm of the model's tokens; angles, in degrees, are those to the initial vectors. A norm above three times
    that of the tokens is a warning, once for each concept and text encoder.
    """

    def on_train_begin(self, trainer: TrainerView) -> None:
        self.trainer = trainer
        self.token_tables = trainer.model.token_tables()
        self.token_norms = token_norms.usual_norms(self.token_tables, trainer.batches.prompt_tokens)
        self.interval = max(_MIN_INTERVAL, trainer.setup.config.training.total_step // _MAX_RECORDS)
        self.warned: set[tuple[str, str]] = set()

    def on_step_end(self, result: StepResult) -> None:
        if not (is_due(self.trainer, result) or result.step % self.interval == 0):
            return
        for encoder, vectors in self.trainer.state.vector_arrays().items():
            if not np.isfinite(vectors).all():
                continue  # the run ends with a message
            nearest = nearest_tokens(vectors, self.token_tables[encoder], _NUM_TOKENS)
            for concept in self.trainer.setup.concepts:
                self._log(result, concept, encoder, vectors[concept.vector_slice], nearest[concept.vector_slice])

    def needs_state(self, step: int) -> bool:
        return step % self.interval == 0 or in_interval(self.trainer, step)

    def _log(
        self,
        result: StepResult,
        concept: TrainingConcept,
        encoder: str,
        vectors: np.ndarray,
        nearest: list[list[tuple[str, float]]],
    ) -> None:
        """Log a concept's vectors in one text encoder, float32 [n, width], with their nearest tokens."""
        initial = self.trainer.initial_vectors[encoder][concept.vector_slice]
        usual = self.token_norms[encoder].norm
        norms = np.linalg.norm(vectors, axis=1)
        record: dict[str, Any] = {
            "step": result.step,
            "placeholder_token": concept.placeholder_token,
            "encoder": encoder,
            "norms": norms.tolist(),
            "relative_norms": (norms / usual).tolist(),
            "relative_norms_before": (np.linalg.norm(initial, axis=1) / usual).tolist(),
            "angles": angles(vectors, initial).tolist(),
            "nearest_tokens": nearest,
        }
        self.trainer.log(record)
        self._warn(concept.placeholder_token, encoder, record["relative_norms"])
        if result.is_last:
            _print(concept.placeholder_token, encoder, nearest)

    def _warn(self, placeholder_token: str, encoder: str, relative_norms: list[float]) -> None:
        highest = max(relative_norms)
        if highest > MAX_RELATIVE_NORM and (placeholder_token, encoder) not in self.warned:
            self.warned.add((placeholder_token, encoder))
            log.warning(
                "vector %d of %s has %.2g times the norm of the tokens of %s; prompts with such vectors are followed "
                "less: --optimizer direction and --preserve_embedding_norm keep the norm, fewer steps help, too",
                relative_norms.index(highest),
                placeholder_token,
                highest,
                encoder,
            )


def angles(vectors: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """Return the angle between each of the `vectors` and its initial vector in degrees, both [n, width]."""
    one, other = (each / (np.linalg.norm(each, axis=1, keepdims=True) + 1e-12) for each in (vectors, initial))
    # Of small angles the cosine has few digits.
    half = np.arctan2(np.linalg.norm(one - other, axis=1), np.linalg.norm(one + other, axis=1))
    return np.degrees(2 * half)


def _print(placeholder_token: str, encoder: str, nearest: list[list[tuple[str, float]]]) -> None:
    first = ", ".join(f"{token} {cosine:.2f}" for token, cosine in nearest[0])
    others = f", and {len(nearest) - 1} more vectors" if len(nearest) > 1 else ""
    write_line(f"nearest tokens to {placeholder_token} in {encoder}: {first}{others}")
