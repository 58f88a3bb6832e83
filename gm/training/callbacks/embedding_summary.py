"""Norms and nearest tokens of the embedding vectors."""

from __future__ import annotations

import numpy as np

from gm.embeddings.nearest_tokens import nearest_tokens
from gm.training.callbacks.base import Callback, TrainerView, write_line
from gm.training.callbacks.embedding_checkpoints import in_interval, is_due
from gm.training.step_result import StepResult

_NUM_TOKENS = 5  # nearest tokens per vector


class EmbeddingSummary(Callback):
    """Logs the norm and the nearest tokens of each vector with every embedding file, and prints them at the end."""

    def on_train_begin(self, trainer: TrainerView) -> None:
        self.trainer = trainer
        self.token_tables = trainer.model.token_tables()

    def on_step_end(self, result: StepResult) -> None:
        if not is_due(self.trainer, result):
            return
        for encoder, all_vectors in self.trainer.state.vector_arrays().items():
            for concept in self.trainer.setup.concepts:
                vectors = all_vectors[concept.vector_slice]
                nearest = nearest_tokens(vectors, self.token_tables[encoder], _NUM_TOKENS)
                self.trainer.log(
                    {
                        "step": result.step,
                        "placeholder_token": concept.placeholder_token,
                        "encoder": encoder,
                        "norms": np.linalg.norm(vectors, axis=1).tolist(),
                        "nearest_tokens": nearest,
                    }
                )
                if result.is_last:
                    _print(concept.placeholder_token, encoder, nearest)

    def needs_state(self, step: int) -> bool:
        return in_interval(self.trainer, step)


def _print(placeholder_token: str, encoder: str, nearest: list[list[tuple[str, float]]]) -> None:
    first = ", ".join(f"{token} {cosine:.2f}" for token, cosine in nearest[0])
    others = f", and {len(nearest) - 1} more vectors" if len(nearest) > 1 else ""
    write_line(f"nearest tokens to {placeholder_token} in {encoder}: {first}{others}")
